"""Where a run's seconds go, and how fast its steps are once nothing is compiled any more."""

import functools
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

PARTS = ("importing", "data", "compiling", "steps", "validation", "checkpoints")
"""Of a run's seconds. ``importing``: from the process's start to its first run. ``compiling``: the first steps of each
process, of a run that is compiled or captured. What is left to the wall clock is building the model and its like."""
_PROCESS = Path("/proc/self/stat")  # of Linux
_imported: list[float] = []


@functools.cache
def note_imports() -> None:
    """Call once all is imported that a run needs: a process imports once, whatever it trains."""
    if (age := _process_seconds()) is not None:
        _imported.append(age)


def _process_seconds() -> float | None:
    """Since this process was started; None where the system does not say."""
    try:
        # After the name, which may hold anything: state is the first field, the start in clock ticks the 20th.
        started = int(_PROCESS.read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError):
        return None


@dataclass
class Timing:
    """The seconds of a run by part, over all of the processes that trained it one after another."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def __post_init__(self) -> None:
        self.seconds["importing"] += _imported.pop() if _imported else 0.0

    @contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """Count what happens within the context."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - begun

    def add(self, earlier: dict[str, float]) -> None:
        """What processes before this one took."""
        for part, seconds in earlier.items():
            self.seconds[part] += seconds


class StepClock:
    """Times steps from the end of one interval to the end of the next.

    Args:
        timing: to which the seconds are added.
        tokens_per_step: of all processes.
        compiling_steps: the first steps of this process, which are not counted in any rate.
    """

    def __init__(self, timing: Timing, tokens_per_step: int, compiling_steps: int) -> None:
        self.timing, self.tokens_per_step, self.compiling_steps = timing, tokens_per_step, compiling_steps
        self._steps = 0
        self._counted, self._counted_seconds = 0, 0.0
        """Steady ones since the last rate."""
        self._uncounted = 0
        self._resumed_at = 0.0

    def resume(self) -> None:
        """The next step begins now."""
        self._resumed_at = time.perf_counter()

    def step(self) -> bool:
        """A step was taken; whether the clock must be stopped at its end, as what follows is of another part."""
        self._steps += 1
        self._uncounted += 1
        return self._steps == self.compiling_steps

    def stop(self) -> None:
        """All steps taken are over, on the device too."""
        seconds = time.perf_counter() - self._resumed_at
        if self._steps <= self.compiling_steps:
            self.timing.seconds["compiling"] += seconds
        else:
            self.timing.seconds["steps"] += seconds
            self._counted += self._uncounted
            self._counted_seconds += seconds
        self._uncounted = 0
        self.resume()

    def rate(self) -> float | None:
        """Tokens per second of the steady steps since this was asked last; None if there were none."""
        steps, seconds = self._counted, self._counted_seconds
        self._counted, self._counted_seconds = 0, 0.0
        return steps * self.tokens_per_step / seconds if steps else None


def steady_rate(lines: Sequence[str]) -> float | None:
    """Tokens per second of a run, from the lines of its speed.jsonl: their median, which a disturbance does not move.

    None where no interval between two lines had a steady step.
    """
    rates = [line["tokens_per_second"] for line in map(json.loads, lines) if "tokens_per_second" in line]
    return median(rates) if rates else None
