"""A run as a folder that Hugging Face transformers loads: ``python export.py checkpoint=outputs/RUN to=FOLDER``."""

from pathlib import Path

from omegaconf import DictConfig

from dma_lab.door import open_door
from dma_lab.exchange import export_run


def main(config: DictConfig) -> None:
    print(f"export: {export_run(Path(str(config.checkpoint)), Path(str(config.to)), str(config.format))}")


if __name__ == "__main__":
    open_door(main, "export")
