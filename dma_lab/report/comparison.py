"""A run beside MHA: which run it is compared with, and by how much they differ on the same documents."""

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from dma_lab.report.cohorts import name_runs
from dma_lab.report.collect import BASELINE, Run
from dma_lab.report.conditions import differing
from dma_lab.scaling.paired import PairedDifference, paired_difference

Difference = PairedDifference | str
"""Of a run to MHA, or why there is none (empty for MHA itself)."""


def comparison_table(runs: Sequence[Run]) -> Table:
    """The table that a sweep ends with: its finished runs, and each one's difference to the MHA run it is paired with.

    Without such a run the cell is a dash: unpaired losses are not subtracted.
    """
    table = Table(
        title="comparison",
        title_justify="left",
        caption="Intervals are over documents: what other seeds would have given is not in them.",
        caption_justify="left",
    )
    recall = any("val_accuracy" in run.summary for run in runs)
    runs = name_runs(runs)
    left = ("attention", "rung", *(["setting"] if any(run.setting for run in runs) else []))
    costs = ("tokens", "seed", "parameters", "FLOP executed", "FLOP dense-eq.", "loss", "perplexity")
    for column in (*left, *costs, "accuracy" if recall else "bits/byte", "loss minus MHA's [95 %]", "documents"):
        table.add_column(column, justify="left" if column in left else "right")
    for run, difference in pair_runs(runs):
        summary = run.summary
        table.add_row(
            run.backend,
            run.rung,
            *([run.setting] if "setting" in left else []),
            f"{summary['tokens']:,}",
            str(summary["seed"]),
            f"{summary['params_non_embedding']:,}",
            f"{summary['flops_executed']:.3g}",
            f"{summary['flops']:.3g}",
            f"{summary['val_loss']:.4f}",
            f"{summary['val_perplexity']:.2f}",
            _number(summary.get("val_accuracy" if recall else "val_bits_per_byte")),
            difference_cell(difference),
            documents_cell(difference),
        )
    return table


def pair_runs(runs: Sequence[Run]) -> list[tuple[Run, Difference]]:
    """Every run of ``runs``, which are finished, with its paired difference to MHA."""
    return [(run, _pair(run, runs)) for run in runs]


def baseline_of(run: Run, runs: Sequence[Run]) -> Run | str:
    """The MHA run among ``runs`` that equals a run in everything but the attention, by value; or why there is none.

    Options that both attentions have (QK-norm, say) are equal too: else the difference could be theirs. Of several such
    runs the one of the run's own commit.
    """
    if run.summary["earlier_machines"]:
        return "several machines took its steps"
    candidates = [other for other in runs if other.attention == BASELINE]
    if not candidates:
        return f"no finished {BASELINE} run stands beside it"
    commit = run.summary["git_commit"]
    nearest = min(candidates, key=lambda other: (len(_apart(run, other)), other.summary["git_commit"] != commit))
    if apart := _apart(run, nearest):
        return f"no {BASELINE} run equals it in all but the attention: the nearest differs in {', '.join(apart)}"
    return nearest


def _apart(run: Run, baseline: Run) -> list[str]:
    ours, theirs = run.config.attention, baseline.config.attention
    options = [f"attention.{name}" for name in ours if name != "name" and name in theirs and ours[name] != theirs[name]]
    return [*differing(run.conditions, baseline.conditions), *options]


def _pair(run: Run, runs: Sequence[Run]) -> Difference:
    if run.attention == BASELINE:
        return ""
    baseline = baseline_of(run, runs)
    if isinstance(baseline, str):
        return baseline
    ours, theirs = run.scores, baseline.scores
    if ours is None or theirs is None:
        return "validation.npz of one of the two is missing or unreadable"
    if not np.array_equal(ours["document_tokens"], theirs["document_tokens"]):
        return "it and the MHA run scored different tokens"
    try:
        return paired_difference(ours["document_nats"], theirs["document_nats"], ours["document_tokens"])
    except ValueError as error:  # a validation.npz whose arrays do not fit each other
        return str(error)


def difference_cell(difference: Difference) -> str:
    """The difference and its interval over documents; a dash where there is none, nothing for MHA."""
    if isinstance(difference, str):
        return "-" if difference else ""
    if difference.interval is None:
        return f"{difference.difference:+.4f}"
    low, high = difference.interval
    return f"{difference.difference:+.4f} [{low:+.4f}, {high:+.4f}]"


def documents_cell(difference: Difference) -> str:
    """Documents scored, and how many equally long ones they are worth."""
    return "" if isinstance(difference, str) else f"{difference.documents:,} ({difference.effective_documents:,.1f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
