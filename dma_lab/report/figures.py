"""The report's figures, as data: what is drawn, not how."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from dma_lab.evaluation.lifetimes import OBSERVED, Lifetimes
from dma_lab.messages import UserError
from dma_lab.report.collect import Run
from dma_lab.report.document import Figure, Heatmap, Series
from dma_lab.report.growth import curves_of, parabolas_of
from dma_lab.report.laws import Laws, band
from dma_lab.scaling.envelope import fit_envelope
from dma_lab.scaling.isoflop import budgets
from dma_lab.scaling.trainings import TrainingsFit

_POSITION_BINS = 24
_CURVE_BINS = 20
_SCORED_BINS = 6


def loss_against_compute(runs: Sequence[Run], laws: Laws, which: Literal["flops_executed", "flops"]) -> Figure:
    """Points of all finished runs; for backends with a law, its curve and band at each size over the tokens seen."""
    series = []
    for backend in dict.fromkeys(run.backend for run in runs):
        own = [run for run in runs if run.backend == backend]
        law = laws.get(backend)
        if isinstance(law, TrainingsFit):
            # A size may be two shapes, whose tokens cost differently.
            for size in sorted({(run.params, _flops_per_token(run, which)) for run in own}):
                alike = [run for run in own if (run.params, _flops_per_token(run, which)) == size]
                series += _law_at(law, alike, which)
        x, y = [run.summary[which] for run in own], [run.summary["val_loss"] for run in own]
        series.append(Series(backend, "points", x, y, hover=[run.label for run in own]))
    name = "executed" if which == "flops_executed" else "dense-equivalent"
    fitted = any(isinstance(law, TrainingsFit) for law in laws.values())
    return Figure(
        f"loss-{name}",
        f"Loss against {name} compute",
        "Each point is a finished run."
        + (
            " A line is the backend's fitted law at one size, shaded: 95 % of what the trainings leave open of it."
            if fitted
            else ""
        ),
        f"training compute, {name} (FLOP)",
        "validation loss (nats per token)",
        series,
        x_log=True,
    )


def _flops_per_token(run: Run, which: str) -> float:
    return float(run.summary[which] / run.summary["tokens"])


def _law_at(law: TrainingsFit, runs: Sequence[Run], which: str) -> list[Series]:
    summaries = [run.summary for run in runs]
    tokens = np.array([summary["tokens"] for summary in summaries], float)
    if len(set(tokens)) < 2:
        return []
    backend, params = runs[0].backend, runs[0].params
    over = np.geomspace(tokens.min(), tokens.max(), 12)
    low, high = band(law, params, over)
    x = list(over * _flops_per_token(runs[0], which))
    return [
        Series(backend, "band", x, list(low), list(high)),
        Series(backend, "line", x, list(law.predict(params, over))),
    ]


def isoflop(runs: Sequence[Run]) -> Figure | None:
    """Loss against size at equal dense-equivalent compute; None unless some budget has three sizes of one backend."""
    series = []
    for backend in dict.fromkeys(run.backend for run in runs):
        own = [run for run in runs if run.backend == backend]
        for budget in budgets([run.summary["flops"] for run in own]):
            group = sorted((own[index] for index in budget), key=lambda run: run.params)
            x = [run.params for run in group]
            if len(set(x)) >= 3:
                y = [run.summary["val_loss"] for run in group]
                sizes = sorted(set(x))
                means = [float(np.mean([b for a, b in zip(x, y, strict=True) if a == size])) for size in sizes]
                series.append(Series(backend, "line", sizes, means, faint=True))
                series.append(Series(backend, "points", x, y, hover=[run.label for run in group]))
        for parabola in parabolas_of(own)[0]:
            over = np.exp(np.linspace(parabola.log_params.min(), parabola.log_params.max(), 40))
            series.append(Series(backend, "line", list(over), list(parabola.predict(over))))
    if not series:
        return None
    return Figure(
        "isoflop",
        "Loss against size at equal compute",
        "Points: runs whose dense-equivalent compute agrees within 10 %, a thin line joining the sizes' means. A thick "
        "line is the parabola in log N of such a budget, where it has a minimum within the sizes run: approach 2. Its "
        "minima are biased even without noise (arXiv 2603.22339).",
        "non-embedding parameters",
        "validation loss (nats per token)",
        series,
        x_log=True,
    )


def envelope(runs: Sequence[Run]) -> Figure | None:
    """Approach 1: each size's losses over its budgets, and the lowest of them at every compute; None without two."""
    series = []
    for backend in dict.fromkeys(run.backend for run in runs):
        own = [run for run in runs if run.backend == backend]
        curves = curves_of(own)
        try:
            found = fit_envelope(curves)
        except UserError:
            continue  # said beside the exponents
        series += [Series(backend, "line", list(curve.flops), list(curve.loss), faint=True) for curve in curves]
        series.append(Series(backend, "line", list(found.flops), list(found.loss)))
        x, sizes, _ = found.handovers
        y = np.interp(np.log(x), np.log(found.flops), found.loss)
        hover = [f"{backend}: the best size passes {size:,.0f} parameters" for size in sizes]
        series.append(Series(backend, "points", list(x), list(y), hover=hover))
    if not series:
        return None
    return Figure(
        "envelope",
        "The lowest loss at every compute",
        "Thin lines: a size and seed at the ends of its budgets, by dense-equivalent compute. Thick: the lowest of "
        "them. Points: where the best size changes, through which approach 1 lays its power laws.",
        "training compute, dense-equivalent (FLOP)",
        "validation loss (nats per token)",
        series,
        x_log=True,
    )


def training_curves(runs: Sequence[Run]) -> Figure:
    """Training loss of every run, and validation losses on the way."""
    series = []
    for run in runs:
        lines = [line for line in run.metrics if line["loss"] is not None]
        scored = [line for line in lines if line.get("val_loss") is not None]
        x, y = _binned([line["tokens"] for line in lines], [line["loss"] for line in lines])
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
    )


def _binned(tokens: Sequence[float], loss: Sequence[float], bins: int = _CURVE_BINS) -> tuple[list[float], list[float]]:
    """Means over bins of equal width in log tokens: a long run has more lines than a figure has room."""
    x, y = np.array(tokens, float), np.array(loss, float)
    if len(x) <= bins:
        return list(x), list(y)
    bin_of = np.digitize(np.log(x), np.linspace(np.log(x[0]), np.log(x[-1]), bins + 1)[1:-1])
    starts = np.flatnonzero(np.diff(bin_of, prepend=-1))
    counts = np.diff([*starts, len(x)])
    return list(np.add.reduceat(x, starts) / counts), list(np.add.reduceat(y, starts) / counts)


def loss_by_position(runs: Sequence[Run]) -> Figure | None:
    """Loss by the target's position in the context, of the runs that most backends share; None without any."""
    scored = [run for run in runs if run.scores is not None]
    if not scored:
        return None
    series = []
    for run in (shown := at_one_point(scored)):
        assert run.scores is not None
        nats, tokens = run.scores["position_nats"], run.scores["position_tokens"]
        edges = np.unique(np.geomspace(1, len(nats) + 1, _POSITION_BINS + 1).round().astype(int)) - 1
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
    )


def recall(runs: Sequence[Run]) -> Figure | None:
    """Accuracy of recall by the gap from a key to its query, of the runs that most backends share; None without any."""
    scored = [run for run in runs if "val_accuracy_by_gap" in run.summary]
    if not scored:
        return None
    series = []
    for run in (shown := at_one_point(scored)):
        octaves = run.summary["val_accuracy_by_gap"]
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
            max(run.summary["flops"] for run in shown.values()),
            -min(run.summary["val_loss"] for run in shown.values()),
        ),
    )
    return list(fullest.values())


def point_text(run: Run) -> str:
    return f"Rung {run.place}"


def lifetime_histograms(slug: str, run: Run, lifetimes: Lifetimes) -> Heatmap:
    """A row for each layer and key/value head: the share of its keys by lifetime."""
    edges, shares = lifetimes.histogram()
    kinds = lifetimes.kinds()
    layers, heads = shares.shape[:2]
    return Heatmap(
        slug,
        f"Lifetimes: {run.label}",
        f"Window W = {lifetimes.window} of a context of {lifetimes.expiry.shape[-1]}; "
        f"{int(lifetimes.observed.sum()):,} observed keys per head. Under a sliding window every row has one dark cell "
        f"at 1; the last column holds the keys that live {OBSERVED:g} W or longer: were scores in random order, "
        f"{lifetimes.surviving_by_chance:.0%} of them.",
        "lifetime of a key, expiry − j, in windows",
        "layer.head",
        [*edges[:-1], 1.1 * OBSERVED],
        {0: "0", 0.5: "0.5", 1: "1", 1.05 * OBSERVED: f"≥ {OBSERVED:g}"},
        [f"{layer}.{head} {kinds[layer][head]}" for layer in range(layers) for head in range(heads)],
        [list(shares[layer, head]) for layer in range(layers) for head in range(heads)],
    )
