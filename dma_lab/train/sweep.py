"""How a multirun ends: its finished runs are shown, its failed points are named with their reasons (status 1)."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import TaskFunction
from omegaconf import DictConfig

from dma_lab.run_summary import Summary
from dma_lab.train.process import this_process
from dma_lab.train.status import status_in_words
from dma_lab.train.sweep_points import FailedPoint, HeldPoint, Point, SweepPoints


class SweepCallback(Callback):
    """Hydra calls it around every job, in whatever process runs that, and at the end (conf/train.yaml).

    A sweep that is stopped, or whose launcher breaks, is reported as far as it came.
    """

    show_runs: ClassVar[Callable[[Sequence[Path]], None]] = staticmethod(lambda directories: None)
    """Shows the finished runs in these directories. ``run_entry_point`` sets it to what the entry point gives."""

    _begun: ClassVar["SweepCallback | None"] = None
    """That of this process's multirun."""

    def __init__(self) -> None:
        self.points: SweepPoints | None = None  # none outside of a multirun

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            self.points = SweepPoints(Path(config.hydra.sweep.dir), _all_points(config))
        except OSError as error:  # Hydra would make a warning of it, and the sweep's failures would go unsaid
            print(
                f"error: output_dir={config.hydra.sweep.dir} cannot be written and locked ({error.strerror}); "
                "choose a directory that can.",
                file=sys.stderr,
            )
            raise SystemExit(2) from None
        SweepCallback._begun = self

    def on_job_start(self, config: DictConfig, *, task_function: TaskFunction, **kwargs: Any) -> None:
        if self.points is not None:
            self.points.write(config.hydra.job.num, Point(_overrides(config), ended=False, process=this_process()))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        # Hydra 1.4 calls this of a job that was stopped, too: its point has not ended.
        if self.points is None or job_return.status is not JobStatus.COMPLETED:
            return
        result, overrides = job_return.return_value, _overrides(config)
        if isinstance(result, FailedPoint):
            point = Point(overrides, summaries=result.summaries, failure=result.reason)
        elif isinstance(result, HeldPoint):
            point = Point(overrides, summaries=result.summaries, held=result.run)
        else:
            point = _ended(overrides, result or [])  # plan.py returns none
        self.points.write(config.hydra.job.num, point)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        stopped = sys.exc_info()[0] is not None  # of which Hydra 1.3 does not tell, and 1.4 does
        if self._end() and not stopped:
            raise SystemExit(1)

    @classmethod
    def forget_refused(cls) -> None:
        """Of a multirun whose points cannot be composed, and of which none began, nothing is left to be done: the same
        command would be refused again."""
        points = cls._begun.points if cls._begun is not None else None
        if cls._begun is not None and points is not None and not points.read():
            points.forget()
            cls._begun.points = None

    @classmethod
    def report_stopped(cls) -> None:
        """Report the multirun that was begun here and did not come to its end, if there is one.

        Before Python exits: then it is too late to import what the report needs.
        """
        if cls._begun is not None:
            cls._begun._end()

    def _end(self) -> bool:
        """Report once; whether any point failed."""
        if self.points is None:
            return False
        points = [_finished_meanwhile(point) for point in self.points.read()]
        self.points.remove()
        self.points = None
        type(self).show_runs([Path(summary.run) for point in points for summary in point.summaries])
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


def _all_points(config: DictConfig) -> list[str] | None:
    """The overrides of every point, in order; None where a sweeper other than Hydra's own makes them as it goes."""
    sweeper = config.hydra.get("sweeper")
    if sweeper is None or not sweeper._target_.endswith(".BasicSweeper"):
        return None
    arguments = [f"{name}={value}" for name, value in (sweeper.params or {}).items()] + [*config.hydra.overrides.task]
    overrides = OverridesParser.create().parse_overrides(arguments)
    return [" ".join(point) for batch in BasicSweeper.split_arguments(overrides, None) for point in batch]


def _finished_meanwhile(point: Point) -> Point:
    """The point, with the summary of its run if the process that held it has finished it."""
    if point.held is None:
        return point
    try:
        summary = Summary.read(Path(point.held))
    except (OSError, ValueError):  # that process has not come so far, or is writing
        return point
    if not summary.has_ended:
        return point
    return _ended(point.overrides, [*point.summaries, summary])


def _ended(overrides: str, summaries: list[Summary]) -> Point:
    """A point whose runs came to ``summaries``: one that diverged is a failure."""
    ends = [(summary, status_in_words(Path(summary.run), summary)) for summary in summaries]
    return Point(
        overrides,
        summaries=[summary for summary, end in ends if end == "finished"],
        failure="; ".join(end for _, end in ends if end != "finished") or None,
    )
