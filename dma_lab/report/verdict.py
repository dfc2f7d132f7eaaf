"""What the runs say of a backend beside MHA, in a sentence, and as plainly what they do not say."""

import numpy as np

from dma_lab.report.collect import BASELINE
from dma_lab.report.statistics import Statistics, ToMatch


def verdicts(found: Statistics) -> list[str]:
    """A sentence a backend, MHA apart; none without MHA."""
    backends = list(dict.fromkeys(run.backend for run in found.finished))
    if BASELINE not in backends:
        return []
    return [_verdict(found, backend) for backend in backends if backend != BASELINE]


def _verdict(found: Statistics, backend: str) -> str:
    seeds = len({run.summary["seed"] for run in found.finished if run.backend == backend})
    units = f"{_count(found.trainings[backend], 'training')} of {_count(seeds, 'seed')}"
    if backend in found.to_match:
        return compute_sentence(backend, found.to_match[backend], units)
    said = f"{backend}: how much of MHA's compute it needs is not known: these runs give no law for it ({units})"
    cells = [cell.difference for cell in found.comparison.cells if cell.run.backend == backend]
    intervals = [cell.interval for cell in cells if cell.interval is not None]
    if not cells:
        return f"{said}; no run of it is paired with one of MHA's."
    if not intervals:
        return f"{said}; nor is it how its losses would differ with other seeds, of which no rung has two."
    above, below = sum(low > 0 for low, _ in intervals), sum(high < 0 for _, high in intervals)
    return (
        f"{said}; of {_count(len(intervals), 'point')} (rung and budget) its loss is above MHA's in {above} and below "
        f"in {below}, where 95 % of what seeds and documents leave open lies on one side."
    )


def compute_sentence(backend: str, match: ToMatch, units: str) -> str:
    """How much of MHA's compute a backend needs, at the largest budget run and at 100 times that."""
    now, _, ahead = match.multipliers
    if now.interval is None or not np.isfinite(now.interval[1]):
        return f"{backend}: how much of MHA's compute it needs for MHA's loss is open, {now.text}; {units}."
    low, high = now.interval
    interval = f"[{low:.2f}, {high:.2f}]"
    if low <= 1 <= high:
        said = f"whether it needs more or less compute than MHA for the same loss is open, {now.multiplier:.2f} times"
        said = f"{said} MHA's {interval}"
    else:
        said = f"it needs {now.multiplier:.2f} times MHA's compute for the same loss {interval}"
    return f"{backend}: {said}; {units}. At 100 times the largest budget, by extrapolation: {ahead.text}."


def _count(number: int, of: str) -> str:
    return f"{number} {of}" if number == 1 else f"{number} {of}s"
