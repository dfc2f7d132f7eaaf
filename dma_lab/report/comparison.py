"""One table of finished runs: what each cost, what it came to, and how it differs from MHA on the same documents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.table import Table

from dma_lab.scaling.paired import PairedDifference, paired_difference

BASELINE = "mha"
# Runs that agree in these, and in these parts of their config.yaml, trained and validated on the same tokens in the
# same order.
_COMPARABLE = ("study", "model", "seed", "match", "context", "tokens", "data_fingerprint", "precision")
_COMPARABLE_SETTINGS = (
    "optimizer",
    "schedule",
    "data.mask_documents",
    "trainer.tokens_per_step",
    "trainer.validation_tokens",
)


def comparison_table(summaries: Sequence[dict[str, Any]]) -> Table:
    """The table of ``summaries`` (of finished runs), each row's difference taken to the MHA run that it is paired with.

    Without such a run (other data, seed, rung or budget) the cell is a dash: unpaired losses are not subtracted.
    """
    table = Table(title="comparison", title_justify="left")
    for column in ("attention", "rung", "seed", "parameters", "FLOP executed", "FLOP dense-eq.", "loss", "perplexity"):
        table.add_column(column, justify="left" if column in ("attention", "rung") else "right")
    recall = any("val_accuracy" in summary for summary in summaries)
    table.add_column("accuracy" if recall else "bits/byte", justify="right")
    table.add_column("loss minus MHA's [95 %]", justify="right")
    for summary in summaries:
        table.add_row(
            summary["attention"],
            summary["model"],
            str(summary["seed"]),
            f"{summary['params_non_embedding']:,}",
            f"{summary['flops_executed']:.3g}",
            f"{summary['flops']:.3g}",
            f"{summary['val_loss']:.4f}",
            f"{summary['val_perplexity']:.2f}",
            _number(summary.get("val_accuracy" if recall else "val_bits_per_byte")),
            _difference_cell(summary, summaries),
        )
    return table


def baseline_of(summary: dict[str, Any], summaries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The finished MHA run among ``summaries`` that agrees with a run in all but the attention; None without one."""
    for other in summaries:
        if (
            other["attention"] == BASELINE
            and all(other[name] == summary[name] for name in _COMPARABLE)
            and _compared_settings(other) == _compared_settings(summary)
        ):
            return other
    return None


def difference_to_baseline(summary: dict[str, Any], summaries: Sequence[dict[str, Any]]) -> PairedDifference | None:
    """Paired difference of a run to its ``baseline_of``; None without one.

    Raises:
        ValueError: the two scored different tokens.
    """
    baseline = baseline_of(summary, summaries)
    if baseline is None:
        return None
    ours, theirs = (np.load(Path(run["run"]) / "validation.npz") for run in (summary, baseline))
    if not np.array_equal(ours["document_tokens"], theirs["document_tokens"]):
        raise ValueError("it and the MHA run scored different tokens")
    return paired_difference(ours["document_nats"], theirs["document_nats"], ours["document_tokens"])


def _compared_settings(summary: dict[str, Any]) -> list[Any]:
    config = OmegaConf.load(Path(summary["run"]) / "config.yaml")
    return [OmegaConf.select(config, name) for name in _COMPARABLE_SETTINGS]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _difference_cell(summary: dict[str, Any], summaries: Sequence[dict[str, Any]]) -> str:
    if summary["attention"] == BASELINE:
        return ""
    paired = difference_to_baseline(summary, summaries)
    return "-" if paired is None else f"{paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]"
