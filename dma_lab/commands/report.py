"""Runs to tables, figures and one page: ``python report.py runs=outputs``."""

from pathlib import Path

from omegaconf import DictConfig

from dma_lab.entry_point import run_entry_point
from dma_lab.report.settings import ReportSettings
from dma_lab.report.tuned_file import write_tuned
from dma_lab.report.write import write_laws, write_report
from dma_lab.settings import read_settings


def main(config: DictConfig) -> None:
    settings = read_settings(ReportSettings, config)
    output = Path(settings.output_dir)
    if settings.tune is not None:
        write_tuned(Path(settings.runs), Path(settings.tune))
        print(f"tuned rates: {settings.tune}")
        return
    if settings.points is not None:
        page = write_laws(settings.points, output)
    else:
        forecast = None if settings.forecast is None else Path(settings.forecast)
        page = write_report(Path(settings.runs), output, forecast, settings.larger)
    print(f"report: {page}")


def run() -> None:
    run_entry_point(main, "report")
