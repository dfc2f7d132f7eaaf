"""What the runs say of a backend beside MHA, in a sentence, and as plainly what they do not say."""

from dataclasses import replace

import numpy as np

from dma_lab.report.collect import BASELINE
from dma_lab.report.document import Verdict
from dma_lab.report.statistics import Statistics, ToMatch


def verdicts(found: Statistics) -> list[Verdict]:
    """One a backend, MHA apart; none without MHA. Where contexts or batches vary within a rung there is no plain MHA:
    all runs are variants of their backends, each beside the MHA of its own.
    """
    of_mha = {run.backend for run in found.finished if run.attention == BASELINE}
    if not of_mha:
        return []
    first = {BASELINE} if BASELINE in of_mha else {own for own in of_mha if not found.comparison.besides(own)}
    return [_verdict(found, backend) for backend in found.backends if backend not in first]


def _verdict(found: Statistics, backend: str) -> Verdict:
    seeds = len({run.summary.seed for run in found.finished if run.backend == backend})
    trainings = _count(found.trainings[backend], "training")
    besides = found.comparison.besides(backend)
    theirs = {BASELINE: "MHA"} if BASELINE in found.trainings else {named: named for named in besides}
    counted = ", ".join(f"{said}: {found.trainings[named]}" for named, said in theirs.items())
    units = f"{_count(seeds, 'seed')}, {trainings}{f' ({counted})' if counted else ''}; {found.rates[backend]}"
    beside = " ".join(_beside(found, backend, named) for named in besides if named != BASELINE)
    if backend in found.to_match:
        verdict = of_compute(backend, found.to_match[backend], units)
        return replace(verdict, further=f"{verdict.further} {beside}".strip())
    said = f"How much of MHA's compute {backend} needs is not known: these runs give no law for it"
    if backend in found.fitted:
        said = f"How much of MHA's compute {backend} needs is not known: its law cannot be held against one of MHA's"
    told = "" if besides else "No run of it is paired with one of MHA's."
    if BASELINE in besides:
        told = _by_losses(found, backend, BASELINE)
    return Verdict(backend, "not known", f"{said}; {units}.", f"{told} {beside}".strip())


def _beside(found: Statistics, backend: str, named: str) -> str:
    """The same beside MHA with options of its own, which the backend has, too."""
    if match := found.beside_variants.get((backend, named)):
        return f"Of the compute of {named} it needs {match.multipliers[0].text} for the same loss."
    return _by_losses(found, backend, named)


def _by_losses(found: Statistics, backend: str, beside: str) -> str:
    """What losses say where no law does."""
    cells = found.comparison.cells_of(backend, [beside])
    intervals = [cell.difference.interval for cell in cells if cell.difference.interval is not None]
    if not intervals:
        return "Nor is it known how its losses would differ with other seeds, of which no rung has two."
    of = "MHA" if beside == BASELINE else beside
    what = "rung, budget and setting" if any(cell.run.setting for cell in cells) else "rung and budget"
    above, below = sum(low > 0 for low, _ in intervals), sum(high < 0 for _, high in intervals)
    return (
        f"Of {_count(len(intervals), 'point')} ({what}) its loss is above {of}'s in {above} and below in "
        f"{below}, where 95 % of what seeds and documents leave open lies on one side."
    )


def of_compute(backend: str, match: ToMatch, units: str) -> Verdict:
    """How much of MHA's compute a backend needs, at the largest budget run and at 100 times that."""
    now, _, ahead = match.multipliers
    further = f"At 100 times the largest budget, by extrapolation: {ahead.text}."
    if now.interval is None or not np.isfinite(now.interval[1]):
        said = f"How much of MHA's compute {backend} needs for MHA's loss is open: {now.text}; {units}."
        return Verdict(backend, "open", said, further)
    low, high = now.interval
    number = f"{now.multiplier:.2f} times MHA's compute [{low:.2f}, {high:.2f}]"
    if low <= 1 <= high:
        said = f"Whether {backend} needs more compute than MHA for the same loss, or less, is open: {number}; {units}."
        return Verdict(backend, "open", said, further)
    said = f"{backend} needs {number} for the same loss; {units}."
    return Verdict(backend, "needs more" if low > 1 else "needs less", said, further)


def _count(number: int, of: str) -> str:
    return f"{number} {of}" if number == 1 else f"{number} {of}s"
