"""What an archive keeps of a run's sums of losses and of its metrics: what the report is made of, in few bytes.

Sums per document are counts of a step, ``X_nats = counts · X_nats_step``. Running sums are rounded, documents in order
of length, and the step divides the whole sum: so the sum over all documents stays what it was, and that over the
documents of any range of lengths is off by less than a step. Losses by position and those of training are kept as means
over the bins that the report draws.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dma_lab.report.context_figures import position_edges
from dma_lab.report.training_figure import training_bins

_STEP = 2.0**-8
"""Times the mean document's nats to the power of 3/4: far below what tells one document from another."""
_FINER = {"document_nats": 2.0**-12}
"""Of these, few of which may make a row of a table."""


def thinned_sums(scores: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays of a validation.npz, of which counts stay as they are."""
    order = np.argsort(scores["document_tokens"], kind="stable")
    thinned = dict(scores)
    for name, values in scores.items():
        if name == "position_nats":
            thinned[name] = _binned(values, scores["position_tokens"])
        elif name.endswith("_nats"):
            step = _FINER.get(name, _STEP)
            thinned[name], thinned[f"{name}_step"] = _counted(values, order[order < len(values)], step)
    return thinned


def thinned_metrics(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the lines of a metrics.jsonl those with a validation loss, and for the others means over bins."""
    means = [{"tokens": tokens, "loss": loss} for tokens, loss in zip(*training_bins(lines), strict=True)]
    scored = [
        {name: value for name, value in line.items() if name in ("step", "tokens") or name.startswith("val_")}
        for line in lines
        if line.get("val_loss") is not None
    ]
    return [*means, *({**line, "loss": None} for line in scored)]


def _counted(
    nats: NDArray[np.float64], order: NDArray[np.int64], step: float
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Counts and steps of ``nats`` (documents, …), of which documents follow each other in ``order``."""
    running = np.cumsum(nats[order], axis=0, dtype=np.float64)
    total, number = running[-1], np.maximum((nats > 0).sum(0), 1)
    steps = np.maximum(total, 1e-9) / np.maximum(np.round(total / (step * np.maximum(total / number, 1.0) ** 0.75)), 1)
    counts = np.empty(nats.shape, np.int32)
    counts[order] = np.diff(np.round(running / steps), axis=0, prepend=0.0)
    return counts, steps


def _binned(nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    edges = position_edges(len(nats))
    counts = np.add.reduceat(tokens, edges[:-1])
    means = np.add.reduceat(nats, edges[:-1]) / np.maximum(counts, 1)
    return np.asarray(np.repeat(means, np.diff(edges)) * tokens, np.float32)
