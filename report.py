"""Runs to tables, figures and one page: ``python report.py runs=outputs``."""

from pathlib import Path

from omegaconf import DictConfig

from dma_lab.door import open_door
from dma_lab.report.settings import ReportSettings
from dma_lab.report.write import write_laws, write_report
from dma_lab.settings import read_settings


def main(config: DictConfig) -> None:
    settings = read_settings(ReportSettings, config)
    output = Path(settings.output_dir)
    page = write_report(Path(settings.runs), output) if settings.points is None else write_laws(settings.points, output)
    print(f"report: {page}")


if __name__ == "__main__":
    open_door(main, "report")
