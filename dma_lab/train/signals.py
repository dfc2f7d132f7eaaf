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
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_ended_by: int | None = None
"""The first signal that was to end this process at once."""


def end_at_once(number: int, frame: FrameType | None) -> None:
    """A handler that unwinds: locks and unfinished files are let go."""
    global _ended_by
    _ended_by = _ended_by or number
    raise _end(number)


def heed_signals() -> None:
    """Have the signals end this process at once, until a ``StopRequest`` heeds them."""
    global _ended_by
    _ended_by = None
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, end_at_once)
    _heed_interrupts()


@contextmanager
def signals_prevail() -> Iterator[None]:
    """A signal that was to end this process does so, although what its handler raised was lost.

    Python drops it within a finalizer: nothing begins here after that. And a library may fail as it unwinds, for it
    had things half changed, as OmegaConf has lists: no error that is raised here after that is told.
    """
    _heed_interrupts()  # also where a launcher started this process
    if _ended_by is not None:
        raise _end(_ended_by)
    try:
        yield
    except Exception:
        if _ended_by is not None:
            raise _end(_ended_by) from None
        raise


def _heed_interrupts() -> None:
    """As Python itself does, but noted; where whoever started this process has them ignored, they are."""
    in_main_thread = threading.current_thread() is threading.main_thread()  # no other can have handlers
    if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)


def _end(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


class StopRequest:
    """Heeds the signals within its context, puts back what heeded them before, and hands the one that came to that."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal that asked to stop. One that could not wait is noted too: Python drops what a handler raises
        within a finalizer, and the run then stops at its first step's end."""
        self.can_wait = False
        """Whether signals are noted, for the step's end. A second one, if it is SIGINT, ends this process at once."""
        self._at_once = False
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
            self._at_once = True
            end_at_once(number, frame)

    def came_of(self, error: BaseException) -> BaseException | None:
        """What ends this process where ``error`` was raised as a signal unwound it; None where none did."""
        return _end(self.number) if self._at_once and self.number and isinstance(error, Exception) else None
