"""What its own learning rate gains each backend over the shared one, seed by seed and document by document."""

from typing import Any

from dma_lab.evaluation.pairing import PairedDifference
from dma_lab.report.collect import Run
from dma_lab.report.comparison import cell_of
from dma_lab.report.conditions import without
from dma_lab.report.document import Table
from dma_lab.report.pairs import difference_of
from dma_lab.report.rates import at_one_rate, named_in_both
from dma_lab.report.statistics import Statistics
from dma_lab.scaling.replicates import MeanDifference, mean_differences

_RATE = frozenset({"tuned", "optimizer.learning_rate"})
_Members = list[tuple[Run, Run, PairedDifference]]


def what_tuning_gains(shared: Statistics, tuned: Statistics) -> Table | None:
    """Of two cohorts that differ in tuning alone; None where no run has one of its seed in both."""
    beside = {(run.backend, without(run.conditions, _RATE)): run for run in at_one_rate(shared.finished)}
    pairs: dict[str, dict[Any, _Members]] = {}
    for run in tuned.finished:
        other = beside.get((run.untuned, without(run.conditions, _RATE)))
        difference = difference_of(run, other) if other is not None else ""
        if other is not None and isinstance(difference, PairedDifference):
            point = without(run.conditions, frozenset({"seed"})), difference.tokens.tobytes()
            pairs.setdefault(run.backend, {}).setdefault(point, []).append((run, other, difference))
    if not pairs:
        return None
    cells = [[cell_of([(run, own) for run, _, own in members]) for members in own.values()] for own in pairs.values()]
    rows = {}
    for (backend, by_point), found in zip(pairs.items(), mean_differences(cells), strict=True):
        last = max(zip(by_point.values(), found, strict=True), key=lambda own: own[0][0][0].summary.flops)
        rows[backend] = _row(*last)
    return Table(
        "Loss at the backend's own tuned rate (with the settings that tuning chose for it, which are then named) minus "
        "that at the shared one (of several the recipe's, else that of least loss), at the point of most compute that "
        "has both: the mean over seeds, with 95 % over trainings and documents. Below 0 the shared rate held the "
        "backend back; where MHA gains more than another, it was the one held back most.",
        ("attention", "rung", "tokens", "shared rate", "tuned rate", "tuned − shared [95 %]", "seeds"),
        [rows[name] for name in tuned.backends if name in rows],
        frozenset(("attention", "rung")),
        title="What its own rate gains each",
        unit="trainings (seeds), crossed with documents",
    )


def _row(members: _Members, own: MeanDifference) -> tuple[str, ...]:
    run, other, _ = members[0]
    interval = "" if own.interval is None else f" [{own.interval[0]:+.4f}, {own.interval[1]:+.4f}]"
    rates = (f"{float(of.config.optimizer.learning_rate):.3g}" for of in (other, run))
    return (
        named_in_both(run.untuned, run.backend),
        run.rung,
        f"{run.summary.tokens:,}",
        *rates,
        f"{own.difference:+.4f}{interval}",
        f"{own.seeds}",
    )
