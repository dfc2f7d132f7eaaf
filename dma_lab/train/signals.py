"""What SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 do: between steps a run is saved and stopped, at all other times it ends at
once.

Either way the process exits with status 128 + the signal's number, unless a launcher had a handler of its own for it:
submitit's is called once the run is saved, and queues the job again. SIGUSR1 is what SLURM is usually asked to send
ahead of a job's end (``sbatch --signal=USR1@90``), SIGUSR2 what submitit asks for. Lightning's own handlers are kept
out: they write checkpoints into the working directory, end with status 0, and call other processes from within a
handler.
"""

import signal
import threading
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def end_at_once(number: int, frame: FrameType | None) -> None:
    """A handler that unwinds: locks and unfinished files are let go."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


class StopRequest:
    """Heeds the signals within its context, puts back what heeded them before, and hands the one that came to that."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal that asked to stop. One that could not wait is noted too: Python drops what a handler raises
        within a finalizer, and the run then stops at its first step's end."""
        self.can_wait = False
        """Whether signals are noted, for the step's end. A second one, if it is SIGINT, ends this process at once."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # no other can have handlers
            self._before = {number: signal.signal(number, self._on_signal) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        before = self._before.get(self.number) if self.number is not None else None
        while self._before:
            signal.signal(*self._before.popitem())
        if callable(before) and before not in (end_at_once, signal.default_int_handler):
            before(self.number, None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self.number = self.number is not None, self.number or number
        if not self.can_wait or (again and number == signal.SIGINT):
            end_at_once(number, frame)
