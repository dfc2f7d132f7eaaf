"""What an archive keeps of a run's sums of losses and of its metrics: what the report is made of, in few bytes.

Sums per document are rounded to a grid, documents in order of length. What a rounding leaves goes to the next document,
and what is left at the end to the last. So the sum over all documents stays what it was, and that over the documents of
any range of lengths is off by less than two steps. Losses by position and those of training are kept as means over the
bins that the report draws.
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
    """The arrays of a validation.npz; counts stay as they are."""
    order = np.argsort(scores["document_tokens"], kind="stable")
    thinned = dict(scores)
    for name, values in scores.items():
        if name == "position_nats":
            thinned[name] = _binned(values, scores["position_tokens"])
        elif name.endswith("_nats"):
            thinned[name] = _on_a_grid(values, order[order < len(values)], _FINER.get(name, _STEP))
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


def _on_a_grid(nats: NDArray[np.float64], order: NDArray[np.int64], step: float) -> NDArray[np.float32]:
    """``nats`` (documents, …), of which documents follow each other in ``order``."""
    columns = nats.reshape(len(nats), -1)[order].astype(np.float64)
    mean = columns.sum(0) / np.maximum((columns > 0).sum(0), 1)
    steps = 2.0 ** np.round(np.log2(step * np.maximum(mean, 1.0) ** 0.75))
    rounded = np.diff(np.round(np.cumsum(columns, axis=0) / steps), axis=0, prepend=0.0) * steps
    for column, exact in zip(rounded.T, columns.T, strict=True):
        last = np.flatnonzero(exact)[-1:]
        column[last] += exact.sum() - column.sum()
    thinned = np.empty_like(rounded)
    thinned[order] = rounded
    return np.asarray(thinned.reshape(nats.shape), np.float32)


def _binned(nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    edges = position_edges(len(nats))
    counts = np.add.reduceat(tokens, edges[:-1])
    means = np.add.reduceat(nats, edges[:-1]) / np.maximum(counts, 1)
    return np.asarray(np.repeat(means, np.diff(edges)) * tokens, np.float32)
