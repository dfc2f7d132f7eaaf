"""What a sweep ends with: one table of its finished runs."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dma_lab.report.collect import Run, Unreadable, read_run, with_rates_by_hand
from dma_lab.report.comparison import comparison_table


def show_runs(directories: Sequence[Path]) -> None:
    """Print the runs in ``directories`` beside each other; those that cannot be read are named on stderr."""
    read = [read_run(directory, str(directory)) for directory in directories]
    if runs := with_rates_by_hand([run for run in read if isinstance(run, Run)]):
        # Many columns: in a file or a pipe they are not folded to the 80 characters that rich assumes there.
        console = Console()
        Console(width=None if console.is_terminal else 240).print(comparison_table(runs))
    for problem in (run for run in read if isinstance(run, Unreadable)):
        print(f"not in the table: {problem.name}: {problem.reason}", file=sys.stderr)
