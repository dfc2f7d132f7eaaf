"""What of DMA's difference to MHA is there without any choice by content: beside the control of random scores."""

from collections.abc import Sequence
from typing import Any

from dma_lab.report.collect import BASELINE, Run
from dma_lab.report.comparison import Comparison, OverTrainings, compare
from dma_lab.report.conditions import without
from dma_lab.report.pairs import baseline_of
from dma_lab.report.rates import precedence
from dma_lab.scaling.replicates import MeanDifference

CHANCE = "dma_random"


def content_sentences(runs: Sequence[Run]) -> list[str]:
    """A sentence for the largest budget of every rung at which DMA, its control and MHA stand side by side, at one rate
    (``precedence``), of the seeds that the control has there, or its parts would not add up. ``runs`` are a cohort's
    finished ones.
    """
    seeds: dict[Any, set[int]] = {}
    for run in runs:
        if run.attention == CHANCE:
            seeds.setdefault((run.model, run.summary.tokens), set()).add(run.summary.seed)
    if not seeds:
        return []
    runs = [run for run in runs if run.summary.seed in seeds.get((run.model, run.summary.tokens), ())]
    to_mha = compare(runs)
    pair = [run for run in runs if run.attention in ("dma", CHANCE)]
    largest: dict[tuple[Any, str], tuple[OverTrainings, str, MeanDifference, MeanDifference]] = {}
    for cell in compare(pair, CHANCE).cells:
        control = baseline_of(cell.run, pair, CHANCE)
        if isinstance(control, str) or control.backend != cell.beside:
            continue  # by chance alone it would have to differ
        ours, theirs = _to_mha(cell.run, to_mha), _to_mha(control, to_mha)
        if beside := next((name for name in ours if name in theirs), None):
            key = cell.run.model, cell.run.backend
            if key not in largest or precedence(largest[key][0].run) < precedence(cell.run):
                largest[key] = cell, beside, ours[beside], theirs[beside]
    return [_sentence(*found) for found in largest.values()]


def _to_mha(run: Run, comparison: Comparison) -> dict[str, MeanDifference]:
    """By what of MHA it is to: the difference of a run and of those that its seed alone tells from it."""
    seed = frozenset({"seed"})
    return {
        cell.beside: cell.difference
        for cell in comparison.cells
        if cell.run.backend == run.backend and without(cell.run.conditions, seed) == without(run.conditions, seed)
    }


def _sentence(cell: OverTrainings, beside: str, ours: MeanDifference, theirs: MeanDifference) -> str:
    run, own = cell.run, cell.difference
    share, to = "", BASELINE.upper() if beside == BASELINE else beside
    if ours.interval is not None and not ours.interval[0] <= 0 <= ours.interval[1]:
        share = f" ({theirs.difference / ours.difference:.0%})"
    place = f"{run.rung}, {run.summary.tokens:,} tokens{f', {run.setting}' if run.setting else ''}"
    if own.interval is None:
        content = f"{own.difference:+.4f}, without an interval: no rung has two seeds"
    else:
        low, high = own.interval
        known = "" if not low <= 0 <= high else ", which other trainings may turn round"
        content = f"{own.difference:+.4f} [{low:+.4f}, {high:+.4f}]{known}"
    return (
        f"What content does for {run.backend}, at {place}: of its {_signed(ours)} to {to}, "
        f"{_signed(theirs)}{share} is there with scores by chance, which keep as many keys ({CHANCE}); choosing by "
        f"content adds {content} (nats per token; {own.seeds} {'seed' if own.seeds == 1 else 'seeds'})."
    )


def _signed(difference: MeanDifference) -> str:
    return f"{difference.difference:+.4f}"
