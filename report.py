"""Runs to tables, figures and one page: ``python report.py runs=outputs``."""

from dma_lab.commands.report import run

if __name__ == "__main__":
    run()
