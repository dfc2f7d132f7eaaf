"""A run as a folder that Hugging Face transformers loads: ``python export.py checkpoint=outputs/RUN to=FOLDER``."""

from pathlib import Path

from omegaconf import DictConfig

from dma_lab.entry_point import run_entry_point
from dma_lab.phases import phase
from dma_lab.settings import read_settings


def main(config: DictConfig) -> None:
    with phase("importing PyTorch"):  # seconds, for which --help need not wait
        from dma_lab.exchange import export_run
        from dma_lab.exchange.settings import ExportSettings
    settings = read_settings(ExportSettings, config)
    print(f"export: {export_run(Path(settings.checkpoint), Path(settings.to), settings.format, settings.license)}")


def run() -> None:
    run_entry_point(main, "export")
