"""Runs to tables, figures and one page: ``python report.py runs=outputs``; ``status``: how they stand."""

import sys
import time
from pathlib import Path

from omegaconf import DictConfig

from dma_lab.entry_point import run_entry_point
from dma_lab.phases import phase
from dma_lab.report.settings import StatusSettings, read_report_settings
from dma_lab.settings import read_settings


def main(config: DictConfig) -> None:
    settings = read_report_settings(config)
    with phase("importing PyTorch and Matplotlib"):  # seconds, for which --help and a mistaken setting need not wait
        from dma_lab.report.archive import unpacked, write_archive
        from dma_lab.report.tuned_file import write_tuned
        from dma_lab.report.watch import watch
        from dma_lab.report.write import write_laws, write_report
    output = Path(settings.output_dir)
    if settings.points is not None:
        print(f"report: {write_laws(settings.points, output)}")
        return
    with unpacked(settings.folders) as folders:
        if settings.tune is not None:
            write_tuned(folders, Path(settings.tune))
            print(f"tuned rates: {settings.tune}")
            return
        if settings.archive is not None:
            print(f"archive: {settings.archive}, {write_archive(folders, Path(settings.archive))} runs")
            return

        def write() -> None:
            print(f"report: {write_report(folders, output, settings.forecasts, settings.larger)}", flush=True)

        if settings.watch:
            watch(folders, write, settings.watch_every)
        else:
            write()


def show_status(config: DictConfig) -> None:
    from rich.console import Console

    from dma_lab.report.status import read_status
    from dma_lab.report.status_table import status_page

    settings = read_settings(StatusSettings, config)
    console = Console()
    page = status_page(read_status(Path(settings.runs)), time.time())
    # Many columns: in a file or a pipe they are not folded to the 80 characters that rich assumes there.
    Console(width=None if console.is_terminal else 200).print(page)


def run() -> None:
    if sys.argv[1:2] == ["status"]:
        del sys.argv[1]
        run_entry_point(show_status, "status")
    else:
        run_entry_point(main, "report")
