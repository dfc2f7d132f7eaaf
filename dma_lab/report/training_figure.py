"""The figure of training curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dma_lab.report.collect import Run
from dma_lab.report.document import Figure, Series

_CURVE_BINS = 20
_SCORED_BINS = 6


def training_curves(runs: Sequence[Run]) -> Figure:
    """Training loss of every run, and validation losses on the way."""
    series = []
    for run in runs:
        scored = [line for line in run.metrics if line.get("val_loss") is not None]
        x, y = training_bins(run.metrics)
        series.append(Series(run.backend, "line", x, y, hover=[run.label] * len(x), faint=True))
        x, y = _binned([line["tokens"] for line in scored], [line["val_loss"] for line in scored], _SCORED_BINS)
        series.append(Series(run.backend, "points", x, y, hover=[f"{run.label}: validation"] * len(x)))
    return Figure(
        "training",
        "Training curves",
        f"Lines: loss of the training batches, means over {_CURVE_BINS} bins of tokens. Points: validation loss on the "
        f"way, over {_SCORED_BINS}.",
        "training tokens",
        "loss (nats per token)",
        series,
        x_log=True,
        unit="a line is one training",
    )


def training_bins(lines: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Tokens and losses of the lines of a metrics.jsonl, as a figure has room for them; of no more lines than that as
    they are."""
    trained = [line for line in lines if line["loss"] is not None]
    return _binned([line["tokens"] for line in trained], [line["loss"] for line in trained])


def _binned(tokens: Sequence[float], loss: Sequence[float], bins: int = _CURVE_BINS) -> tuple[list[float], list[float]]:
    """Means over bins of equal width in log tokens: a long run has more lines than a figure has room."""
    x, y = np.array(tokens, float), np.array(loss, float)
    if len(x) <= bins:
        return list(x), list(y)
    bin_of = np.digitize(np.log(x), np.linspace(np.log(x[0]), np.log(x[-1]), bins + 1)[1:-1])
    starts = np.flatnonzero(np.diff(bin_of, prepend=-1))
    counts = np.diff([*starts, len(x)])
    return list(np.add.reduceat(x, starts) / counts), list(np.add.reduceat(y, starts) / counts)
