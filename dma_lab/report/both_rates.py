"""Backends beside MHA at the rate that all share, and at each one's own tuned rate: where runs of both kinds exist."""

from collections.abc import Mapping
from typing import Any

from dma_lab.report.cohorts import but_for_tuning
from dma_lab.report.collect import BASELINE
from dma_lab.report.comparison import OverTrainings
from dma_lab.report.conditions import shared_by_a_study, without
from dma_lab.report.document import Block, Section, Table
from dma_lab.report.rates import SEED_AND_RATE, at_one_rate, is_tuned, named_in_both
from dma_lab.report.statistics import Statistics
from dma_lab.report.tuned_notes import how_tuned
from dma_lab.report.tuning_gains import what_tuning_gains


def at_both_rates(statistics: Mapping[str, Statistics]) -> list[Section]:
    """A section for every two of ``statistics`` (by cohort) that differ in tuning alone."""
    shared: dict[Any, Statistics] = {}
    for found in statistics.values():
        if not is_tuned(found.finished[0]):
            shared[_apart_from_tuning(found)] = found
    sections = []
    for name, tuned in statistics.items():
        beside = shared.get(_apart_from_tuning(tuned)) if is_tuned(tuned.finished[0]) else None
        if beside and (rows := _rows(beside, tuned)):
            gains = [own] if (own := what_tuning_gains(beside, tuned)) else []
            said = how_tuned(tuned.backends, tuned.finished)
            blocks: list[Block] = [f"Tuned: runs of {name}.", _table(rows), *gains, *([said] if said else [])]
            sections.append(Section("Shared rate and tuned rates", blocks))
    return sections


def _apart_from_tuning(found: Statistics) -> Any:
    return but_for_tuning(shared_by_a_study(found.finished[0].conditions))


def _table(rows: list[tuple[str, ...]]) -> Table:
    return Table(
        "Each backend beside MHA twice: both at the rate of the runs that name no file of tuned rates, and each at its "
        "own tuned rate and, where it says so, with the settings that tuning chose for it. Compute: executed, that it "
        "needs for MHA's loss at the largest budget run, as a multiple of MHA's. Difference: loss minus MHA's, in the "
        "mean over seeds, at the point of most compute that both kinds have; of several shared rates there the "
        "recipe's, else that of least loss. A variant stands beside MHA and, "
        "where there is one, beside MHA with the same option. A dash: no law, or no such point.",
        (
            *(
                "attention",
                "beside",
                "compute ÷ MHA's, shared [95 %]",
                "compute ÷ MHA's, tuned [95 %]",
                "rung",
                "tokens",
            ),
            *("loss − MHA, shared [95 %]", "loss − MHA, tuned [95 %]", "seeds", "which shared rate"),
        ),
        rows,
        frozenset(("attention", "beside", "rung", "which shared rate")),
        title="The same comparison at both rates",
        unit="trainings; of differences crossed with documents",
    )


def _rows(shared: Statistics, tuned: Statistics) -> list[tuple[str, ...]]:
    rows = []
    pairs = {
        (names, beside): None
        for names in _both(shared, tuned)
        for found, name in zip((tuned, shared), reversed(names), strict=True)
        for beside in found.comparison.besides(name)
    }
    for names, beside in pairs:
        backend, tuned_name = names
        compute = [_compute(found, name, beside) for found, name in zip((shared, tuned), names, strict=True)]
        ours, theirs = (_cells(found, name, beside) for found, name in zip((shared, tuned), names, strict=True))
        place, differences = ("-", "-"), ("-", "-", "-")
        if common := ours.keys() & theirs.keys():
            at = max(common, key=lambda point: theirs[point].run.summary.flops)
            run = theirs[at].run
            place = run.rung, f"{run.summary.tokens:,}"
            seeds = " / ".join(f"{own[at].difference.seeds}" for own in (ours, theirs))
            differences = _text(ours[at]), _text(theirs[at]), seeds
        rate = shared.rates.get(backend, "tuned alone") if theirs or tuned_name in tuned.rates else "shared alone"
        rows.append((named_in_both(backend, tuned_name), beside, *compute, *place, *differences, rate))
    return rows


def _both(shared: Statistics, tuned: Statistics) -> list[tuple[str, str]]:
    """Every backend by its names among shared and among tuned runs: these differ where tuning chose settings."""
    untuned = {run.backend: run.untuned for run in tuned.finished}
    pairs = []
    for name in tuned.backends:
        if untuned[name] != name:
            pairs.append((untuned[name], name))
        if untuned[name] == name or name in shared.backends:
            pairs.append((name, name))
    there = {name for name, _ in pairs}
    return [*pairs, *((name, name) for name in shared.backends if name not in there)]


def _compute(found: Statistics, backend: str, beside: str) -> str:
    match = found.to_match.get(backend) if beside == BASELINE else found.beside_variants.get((backend, beside))
    return "-" if match is None else match.multipliers[0].text


def _cells(found: Statistics, backend: str, beside: str) -> dict[Any, OverTrainings]:
    """By point; of several rates the recipe's, else that of least loss."""
    cells = found.comparison.cells_of(backend, [beside])
    seed = frozenset({"seed"})
    paired = {without(cell.run.conditions, seed) for cell in cells}
    runs = [run for run in found.finished if run.backend == backend and without(run.conditions, seed) in paired]
    taken = {run.path for run in at_one_rate(runs)}
    return {without(cell.run.conditions, SEED_AND_RATE): cell for cell in cells if cell.run.path in taken}


def _text(cell: OverTrainings) -> str:
    own = cell.difference
    if own.interval is None:
        return f"{own.difference:+.4f}"
    return f"{own.difference:+.4f} [{own.interval[0]:+.4f}, {own.interval[1]:+.4f}]"
