"""How far training has come: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_SECONDS_BETWEEN_LINES = 10.0


class TrainingProgress:
    """Shows step, loss, tokens/s and time left. Use as a context manager.

    Args:
        steps: of the whole run.
        first_step: steps that were taken before.
        compiling_steps: the first so many of those that come; the time left is told by the others.
    """

    def __init__(self, steps: int, first_step: int, compiling_steps: int) -> None:
        self.steps, self.first_step = steps, first_step
        self.steady_from = first_step + compiling_steps
        self.beginning = "compiling its first steps" if compiling_steps else "its first step"
        self.started = self.last_line = time.monotonic()
        self.figures = ""
        console = Console(stderr=True)
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
        )
        self.bar = Progress(*columns, console=console) if console.is_terminal else None

    def __enter__(self) -> "TrainingProgress":
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("training", total=self.steps, completed=self.first_step, state=self.beginning)
        elif self.steady_from > self.first_step:
            print(f"training  {self.beginning}", file=sys.stderr, flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def metrics(self, loss: float, tokens_per_second: float | None) -> None:
        """The latest figures."""
        speed = "" if tokens_per_second is None else f"{tokens_per_second:,.0f} tokens/s  "
        self.figures = f"loss {loss:.4f}  {speed}"

    def advance(self, step: int) -> None:
        """``step`` steps are finished."""
        now = time.monotonic()
        if step <= self.steady_from:
            self.started = now
        state = self.figures + self._left(step, now)
        if self.bar is not None:
            self.bar.update(self.task, completed=step, state=state)
        elif (self.figures and now - self.last_line >= _SECONDS_BETWEEN_LINES) or step == self.steps:
            self.last_line = now
            print(f"training  step {step}/{self.steps}  {state}", file=sys.stderr, flush=True)

    def _left(self, step: int, now: float) -> str:
        if step <= self.steady_from and step < self.steps:
            return self.beginning
        seconds = (now - self.started) / max(1, step - self.steady_from) * (self.steps - step)
        return f"{timedelta(seconds=round(seconds))} left"
