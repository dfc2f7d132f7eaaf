"""How far a long piece of work has come: a bar on a terminal, a plain line now and then elsewhere; on stderr."""

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A context manager, within which the bar is there.

    Args:
        title: what is being done.
        total: how much of it there is.
        amount: the bar's column that says how much is done.
        done: how much was done before.
        note: what stands behind that at first.
        transient: the bar disappears in the end.
    """

    def __init__(
        self,
        title: str,
        total: float,
        amount: ProgressColumn,
        *,
        done: int = 0,
        note: str = "",
        transient: bool = False,
    ) -> None:
        self._started = self._last_line = time.monotonic()
        self._bar: Bar | None = None
        console = Console(stderr=True)
        if console.is_terminal:
            named, noted = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
            columns = (named, BarColumn(), amount, noted, TimeElapsedColumn())
            self._bar = Bar(*columns, console=console, transient=transient)
            self._task = self._bar.add_task(title, total=total, completed=done, note=note)

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._started

    def show(self, done: float, note: str, line: str | None, *, at_once: bool = False) -> None:
        """Move the bar; where there is none, print ``line`` if the last one was some seconds ago, or ``at_once``."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif line is not None and (at_once or time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES):
            self._last_line = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


class WorkProgress(Progress):
    """``with WorkProgress("tokenizing") as progress: progress.update(0.25, "3.1 MB/s")``."""

    def __init__(self, title: str) -> None:
        super().__init__(title, 1.0, TaskProgressColumn(), transient=True)
        self._title = title

    def update(self, fraction: float, note: str) -> None:
        """``fraction`` of the work is done, above 1 where more was read than asked for; ``note`` says what besides."""
        fraction = min(fraction, 1.0)
        if fraction > 0:
            note = f"{note}, {self.seconds * (1 / fraction - 1):.0f} s to go"
        self.show(fraction, note, f"dma_lab: {self._title} {fraction:.0%}, {note}")
