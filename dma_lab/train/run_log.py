"""The lines of a run as a tracker gets them: every step once, whoever trained it and however often it was cut."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dma_lab.train.runs import RunDirectory

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
