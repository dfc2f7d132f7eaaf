"""Figures along the context: loss by position, and recall by the gap from a key to its query."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dma_lab.report.collect import Run
from dma_lab.report.document import Figure, Series

_POSITION_BINS = 24


def loss_by_position(runs: Sequence[Run]) -> Figure | None:
    """Loss by the target's position in the context, of the runs that most backends share; None without any."""
    scored = [run for run in runs if run.scores is not None]
    if not scored:
        return None
    series = []
    for run in (shown := at_one_point(scored)):
        assert run.scores is not None
        nats, tokens = run.scores["position_nats"], run.scores["position_tokens"]
        edges = position_edges(len(nats))
        counts = np.add.reduceat(tokens, edges[:-1])
        means = np.add.reduceat(nats, edges[:-1]) / np.maximum(counts, 1)
        middle = np.sqrt((edges[:-1] + 1.0) * edges[1:])
        hover = [f"positions {a + 1} to {b}, {n:,} tokens" for a, b, n in zip(edges, edges[1:], counts, strict=False)]
        kept = counts > 0
        x, y = list(middle[kept]), list(means[kept])
        hover = [text for text, keep in zip(hover, kept, strict=True) if keep]
        series += [Series(run.backend, "line", x, y), Series(run.backend, "points", x, y, hover=hover)]
    return Figure(
        "position",
        "Loss by position in the context",
        f"{point_text(shown[0])}: mean over the validation tokens at each position, positions gathered into bins that "
        "widen with distance.",
        "position of the target in its window",
        "validation loss (nats per token)",
        series,
        x_log=True,
        unit="one training per backend; over its validation tokens",
    )


def position_edges(context: int) -> NDArray[np.int64]:
    """Where bins of positions begin that widen with distance, and at last where they end."""
    return np.unique(np.geomspace(1, context + 1, _POSITION_BINS + 1).round().astype(np.int64)) - 1


def recall_by_gap(runs: Sequence[Run]) -> Figure | None:
    """Accuracy of recall by the gap from a key to its query, of the runs that most backends share; None without any."""
    scored = [run for run in runs if run.summary.val_accuracy_by_gap is not None]
    if not scored:
        return None
    series = []
    for run in (shown := at_one_point(scored)):
        octaves = run.summary.val_accuracy_by_gap or {}
        x, y = [int(octave.split("-")[1]) for octave in octaves], list(octaves.values())
        hover = [f"{run.label}: gaps of {octave} tokens" for octave in octaves]
        series += [Series(run.backend, "line", x, y), Series(run.backend, "points", x, y, hover=hover)]
    return Figure(
        "recall",
        "Recall by gap",
        f"{point_text(shown[0])}: share of queries answered right, by the gap to the key's binding in octaves. Between "
        f"bindings and queries stands {shown[0].config.data.filler} filler (data.filler).",
        "gap up to (tokens)",
        "accuracy",
        series,
        x_log=True,
        unit="one training per backend; over its queries",
    )


def at_one_point(runs: Sequence[Run]) -> list[Run]:
    """A run of every backend at the point that most backends share, all but the attention being equal; of several such
    points that of most compute, and then of least loss.
    """
    by_point: dict[Any, dict[str, Run]] = {}
    for run in runs:
        by_point.setdefault(run.point, {}).setdefault(run.backend, run)
    fullest = max(
        by_point.values(),
        key=lambda shown: (
            len(shown),
            max(run.summary.flops for run in shown.values()),
            -min(run.loss for run in shown.values()),
        ),
    )
    return list(fullest.values())


def point_text(run: Run) -> str:
    return f"Rung {run.place}"
