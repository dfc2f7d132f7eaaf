"""How far training has come: step, loss, tokens/s and the time left."""

import time
from datetime import timedelta

from rich.progress import MofNCompleteColumn

from dma_lab.progress import Progress


class TrainingProgress(Progress):
    """Use as a context manager.

    Args:
        steps: of the whole run.
        first_step: steps that were taken before.
        compiling_steps: the first so many of those that come; the time left is told by the others.
    """

    def __init__(self, steps: int, first_step: int, compiling_steps: int) -> None:
        self.steps, self.first_step = steps, first_step
        self.steady_from = first_step + compiling_steps
        self.beginning = "compiling its first steps" if compiling_steps else "its first step"
        self.steady_since = time.monotonic()
        self.figures = ""
        super().__init__("training", steps, MofNCompleteColumn(), done=first_step, note=self.beginning)
        if compiling_steps:
            self.show(first_step, self.beginning, f"training  {self.beginning}", at_once=True)

    def metrics(self, loss: float, tokens_per_second: float | None) -> None:
        """The latest figures."""
        speed = "" if tokens_per_second is None else f"{tokens_per_second:,.0f} tokens/s  "
        self.figures = f"loss {loss:.4f}  {speed}"

    def advance(self, step: int) -> None:
        """``step`` steps are finished."""
        now = time.monotonic()
        if step <= self.steady_from:
            self.steady_since = now
        note = self.figures + self._left(step, now)
        ended = step == self.steps
        line = f"training  step {step}/{self.steps}  {note}" if self.figures or ended else None
        self.show(step, note, line, at_once=ended)

    def _left(self, step: int, now: float) -> str:
        if step <= self.steady_from and step < self.steps:
            return self.beginning
        seconds = (now - self.steady_since) / max(1, step - self.steady_from) * (self.steps - step)
        return f"{timedelta(seconds=round(seconds))} left"
