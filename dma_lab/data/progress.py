"""How long the building of a corpus still takes: a bar on a terminal, a line now and then elsewhere; on stderr."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class BuildProgress:
    """``with BuildProgress("tokenizing") as progress: progress.update(0.25, "3.1 MB/s")``."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = time.monotonic()
        self._last_line = self._started
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("eta"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(title, total=1.0, note="")

    def update(self, fraction: float, note: str) -> None:
        """``fraction`` of the work is done, above 1 where more was read than asked for; ``note`` says what besides."""
        fraction = min(fraction, 1.0)
        if self._bar is not None:
            self._bar.update(self._task, completed=fraction, note=note)
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            remaining = (now - self._started) * (1 / fraction - 1) if fraction > 0 else float("nan")
            line = f"dma_lab: {self._title} {fraction:.0%}, {note}, {remaining:.0f} s to go"
            print(line, file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def __enter__(self) -> "BuildProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
