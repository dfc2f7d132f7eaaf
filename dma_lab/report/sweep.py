"""What a multirun ends with: one table of its runs, and the points that failed with their reasons (status 1)."""

import atexit
import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import TaskFunction
from omegaconf import DictConfig
from rich.console import Console

from dma_lab.door import FailedPoint, HeldPoint
from dma_lab.report.collect import Run, Unreadable, read_run, status_in_words
from dma_lab.report.comparison import comparison_table
from dma_lab.report.sweep_points import Point, SweepPoints
from dma_lab.run_summary import read_summary


class SweepReport(Callback):
    """Hydra calls it around every job, in whatever process runs that, and at the end (conf/train.yaml).

    A sweep that is stopped, or whose launcher breaks, is reported as far as it came.
    """

    def __init__(self) -> None:
        self.points: SweepPoints | None = None  # none outside of a multirun

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            self.points = SweepPoints(Path(config.hydra.sweep.dir))
        except OSError as error:  # Hydra would make a warning of it, and the sweep's failures would go unsaid
            print(
                f"error: output_dir={config.hydra.sweep.dir} cannot be written and locked ({error.strerror}); "
                "choose a directory that can.",
                file=sys.stderr,
            )
            raise SystemExit(2) from None
        atexit.register(self._end)

    def on_job_start(self, config: DictConfig, *, task_function: TaskFunction, **kwargs: Any) -> None:
        if self.points is not None:
            self.points.write(config.hydra.job.num, Point(_overrides(config), ended=False))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if self.points is None:
            return
        result, overrides = job_return.return_value, _overrides(config)
        if isinstance(result, FailedPoint):
            point = Point(overrides, failure=result.reason)
        elif isinstance(result, HeldPoint):
            point = Point(overrides, held=result.run)
        else:
            point = _ended(overrides, result or [])  # plan.py returns none
        self.points.write(config.hydra.job.num, point)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if self._end():
            raise SystemExit(1)

    def _end(self) -> bool:
        """Report once; whether any point failed."""
        if self.points is None:
            return False
        points = [_finished_meanwhile(point) for point in self.points.read()]
        self.points.remove()
        self.points = None
        read = [read_run(Path(summary["run"]), summary["run"]) for point in points for summary in point.summaries]
        if runs := [run for run in read if isinstance(run, Run)]:
            # Many columns: in a file or a pipe they are not folded to the 80 characters that rich assumes there.
            console = Console()
            Console(width=None if console.is_terminal else 240).print(comparison_table(runs))
        for problem in (run for run in read if isinstance(run, Unreadable)):
            print(f"not in the table: {problem.name}: {problem.reason}", file=sys.stderr)
        for point in points:
            if point.held is not None:
                print(f"left to another process: {point.overrides}: {point.held}", file=sys.stderr)
            elif point.failure is not None:
                print(f"failed: {point.overrides}: {point.failure}", file=sys.stderr)
            elif not point.ended:
                print(f"stopped at: {point.overrides}; the same command goes on from there", file=sys.stderr)
        return any(point.failure is not None or not point.ended for point in points)


def _overrides(config: DictConfig) -> str:
    return " ".join(config.hydra.overrides.task)


def _finished_meanwhile(point: Point) -> Point:
    """The point, with the summary of its run if the process that held it has finished it."""
    if point.held is None:
        return point
    try:
        summary = read_summary(Path(point.held))
    except (OSError, ValueError):  # that process has not come so far, or is writing
        return point
    return _ended(point.overrides, [summary]) if summary["status"] in ("finished", "diverged") else point


def _ended(overrides: str, summaries: list[dict[str, Any]]) -> Point:
    """A point whose runs came to ``summaries``: one that diverged is a failure."""
    ends = [(summary, status_in_words(Path(summary["run"]), summary)) for summary in summaries]
    return Point(
        overrides,
        summaries=[summary for summary, end in ends if end == "finished"],
        failure="; ".join(end for _, end in ends if end != "finished") or None,
    )
