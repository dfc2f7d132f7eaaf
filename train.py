"""Train one run: ``python train.py experiment=chinchilla_dma``. Every setting of conf/ is an override."""

from typing import Any

from omegaconf import DictConfig

from dma_lab.door import open_door
from dma_lab.train.fit_run import fit_run
from dma_lab.train.settings import read_settings
from dma_lab.train.summary import print_summary


def main(config: DictConfig) -> dict[str, Any]:
    summary = fit_run(read_settings(config))
    print_summary(summary)
    return summary


if __name__ == "__main__":
    open_door(main, "train")
