"""Runs to tables, figures and one page: ``python report.py runs=outputs``."""

from pathlib import Path

from omegaconf import DictConfig

from dma_lab.door import open_door
from dma_lab.report.write import write_report


def main(config: DictConfig) -> None:
    print(f"report: {write_report(Path(config.runs), Path(config.output_dir))}")


if __name__ == "__main__":
    open_door(main, "report")
