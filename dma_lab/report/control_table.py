"""Backends beside their controls: at every rung that has both, what the one thing is worth that tells them apart."""

from collections.abc import Sequence

from dma_lab.attention.controls import CONTROLS
from dma_lab.report.collect import Run
from dma_lab.report.comparison import Comparison, OverTrainings, compare
from dma_lab.report.conditions import without
from dma_lab.report.document import Table
from dma_lab.report.pairs import baseline_of
from dma_lab.report.rates import precedence
from dma_lab.report.sparsity import mean_keys_per_query
from dma_lab.scaling.replicates import MeanDifference

_SEED = frozenset({"seed"})
_LACKS = {
    "dma_random": "choice by content",
    "dma_frozen": "learned scores",
    "swa_sinks": "no sinks",
    "hybrid": "windows in all layers",
    "gated_mha": "no gate",
}
"""What a backend has and its control has not."""


def control_table(finished: Sequence[Run]) -> Table | None:
    """Of a cohort's finished runs; None where no control stands beside its backend."""
    there = {run.attention for run in finished}
    to_mha = compare(finished)
    rows = []
    for control, (backend, _, _) in CONTROLS.items():
        if {control, backend} <= there:
            both = [run for run in finished if run.attention in (control, backend)]
            rows += [_row(*cell, both, control, to_mha) for cell in _longest(compare(both, control), both, control)]
    if not rows:
        return None
    return Table(
        "A control is the backend but for one thing. At the largest budget of every rung that has both, over the seeds "
        "that each pair of runs has: the loss of either minus MHA's, and the backend's minus the control's, which is "
        "what that thing adds (below 0: it helps), with 95 % over trainings and documents. Keys per query: the mean "
        "over a full context and all layers, of the backend and of the control.",
        (
            *("attention", "control", "of which it has", "rung", "tokens", "keys per query"),
            *("loss − MHA", "control − MHA", "loss − control [95 %]", "seeds"),
        ),
        rows,
        frozenset(("attention", "control", "of which it has", "rung")),
        title="Backends beside their controls",
        unit="trainings (seeds), crossed with documents",
    )


def _longest(comparison: Comparison, both: Sequence[Run], control: str) -> list[tuple[OverTrainings, str]]:
    """Of every rung, backend and control the cell of most tokens, and of several such, at several rates say, the one
    that precedes (``precedence``); with what it is, where there are several."""
    found: dict[object, list[OverTrainings]] = {}
    for cell in comparison.cells:
        other = baseline_of(cell.run, both, control)
        if isinstance(other, str) or other.backend != cell.beside:
            continue  # held against a control with other options, too
        found.setdefault((cell.run.model, cell.run.backend, cell.beside), []).append(cell)
    return [_chosen(cells) for cells in found.values()]


def _chosen(cells: Sequence[OverTrainings]) -> tuple[OverTrainings, str]:
    best = max(cells, key=lambda cell: precedence(cell.run))
    several = sum(cell.run.summary.tokens == best.run.summary.tokens for cell in cells) > 1
    return best, f", {best.run.setting}" if several else ""


def _row(cell: OverTrainings, setting: str, both: Sequence[Run], control: str, to_mha: Comparison) -> tuple[str, ...]:
    run, other = cell.run, baseline_of(cell.run, both, control)
    assert isinstance(other, Run)
    keys = [mean_keys_per_query(own) for own in (run, other)]
    return (
        *(run.backend, cell.beside, _LACKS[control], f"{run.rung}{setting}", f"{run.summary.tokens:,}"),
        " / ".join("-" if own is None else f"{own:.1f}" for own in keys),
        *(_to_mha(own, to_mha) for own in (run, other)),
        _text(cell.difference),
        f"{cell.difference.seeds}",
    )


def _to_mha(run: Run, to_mha: Comparison) -> str:
    for cell in to_mha.first_cells(run.backend):
        if without(cell.run.conditions, _SEED) == without(run.conditions, _SEED):
            return _text(cell.difference)
    return "-"


def _text(own: MeanDifference) -> str:
    if own.interval is None:
        return f"{own.difference:+.4f}"
    return f"{own.difference:+.4f} [{own.interval[0]:+.4f}, {own.interval[1]:+.4f}]"
