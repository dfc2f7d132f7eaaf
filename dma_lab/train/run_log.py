"""Where a run's lines go beside its own directory (conf/logger/): a tracker's run for every run directory.

A continued run goes on in its tracker's run, where every step stands once.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import Any

from dma_lab.messages import UserError
from dma_lab.train.runs import RunDirectory
from dma_lab.train.settings import LoggerSettings, TrainSettings

Write = Callable[[dict[str, Any], int], None]
"""Takes a line and its step."""


class RunLog:
    """Takes a run's lines. Of a run whose ``logger`` is ``local``, nothing."""

    def __init__(self, write: Write | None = None, logged: int = 0) -> None:
        self._write, self._logged = write, logged
        self.exit_code = 1
        """0 once the run is finished."""

    def add(self, line: dict[str, Any], step: int) -> None:
        """Log the line of step ``step``, unless that one was logged before."""
        if self._write is not None and step > self._logged:
            self._write(line, step)
            self._logged = step

    def add_written(self, run: RunDirectory) -> None:
        """Log the lines that ``run`` holds already, of those that the tracker lacks."""
        speeds = {line["step"]: line for line in _parsed(run.lines[run.speed.name])}
        for line in _parsed(run.lines[run.metrics.name]):
            self.add(line | speeds.get(line["step"], {}), line["step"])


def require_logger(logger: LoggerSettings) -> None:
    """Raises UserError where the package of ``logger`` is not installed."""
    if logger.name != "local" and find_spec(logger.name) is None:
        raise UserError(
            f"logger={logger.name} needs the package {logger.name}, which is not installed: "
            f"pip install 'dma-lab[{logger.name}]', or pip install {logger.name}."
        )


@contextmanager
def run_log(settings: TrainSettings, run: RunDirectory, logged: int) -> Iterator[RunLog]:
    """The log of a run that is about to train.

    Lines that ``run`` holds already and the tracker does not (a branch's, from the shorter one) are logged first.

    Args:
        settings, run: of the run; its lines are those that training goes on from.
        logged: ``last_step`` of the run, taken before lines were dropped that training will repeat.
    """
    with _tracked(settings, run, logged) as log:
        log.add_written(run)
        yield log


def _tracked(settings: TrainSettings, run: RunDirectory, logged: int) -> AbstractContextManager[RunLog]:
    if run.writer and settings.logger.name == "wandb":
        from dma_lab.train.wandb_run import wandb_log

        return wandb_log(settings, run, logged)
    if run.writer and settings.logger.name == "tensorboard":
        from dma_lab.train.tensorboard_run import tensorboard_log

        return tensorboard_log(settings, run)
    if run.writer and settings.logger.name == "trackio":
        from dma_lab.train.trackio_run import trackio_log

        return trackio_log(settings, run, logged)
    return _nothing()


@contextmanager
def _nothing() -> Iterator[RunLog]:
    yield RunLog()


def last_step(run: RunDirectory) -> int:
    """Of the last line in the run's metrics that can be read; 0 without one."""
    lines = run.metrics.read_text(encoding="utf-8", errors="replace").splitlines() if run.metrics.exists() else []
    return max((line["step"] for line in _parsed(lines)), default=0)


def group_of(run: RunDirectory) -> str:
    """All of its name but what tells budgets apart."""
    return run.path.name.rpartition("-")[0]


def numbers(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a line under their whole names, as wandb has them: ``val_accuracy_by_pairs.4``."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            found[f"{prefix}{name}"] = value
    return found


def _parsed(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Of the lines, those that are whole."""
    parsed = []
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            parsed.append(line)
    return parsed
