"""Figures of a cohort's scaling: losses against compute with the laws, isoFLOP parabolas, the envelope."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from dma_lab.messages import UserError
from dma_lab.report.collect import Run
from dma_lab.report.document import Figure, Series
from dma_lab.report.growth import curves_of, parabolas_of
from dma_lab.report.laws import Laws, band
from dma_lab.scaling.envelope import fit_envelope
from dma_lab.scaling.isoflop import budgets
from dma_lab.scaling.trainings import TrainingsFit

_Which = Literal["flops_executed", "flops"]


def loss_against_compute(runs: Sequence[Run], laws: Laws, which: _Which) -> Figure:
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
        x, y = [_flops(run, which) for run in own], [run.loss for run in own]
        series.append(Series(backend, "points", x, y, hover=[run.label for run in own]))
    name = "executed" if which == "flops_executed" else "dense-equivalent"
    fitted = any(isinstance(law, TrainingsFit) for law in laws.values())
    return Figure(
        f"loss-{name}",
        f"Loss against {name} compute, size by size",
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
        unit="a point is one training or a branch of one; shades are over trainings",
    )


def _flops(run: Run, which: _Which) -> int:
    return run.summary.flops_executed if which == "flops_executed" else run.summary.flops


def _flops_per_token(run: Run, which: _Which) -> float:
    return _flops(run, which) / run.summary.tokens


def _law_at(law: TrainingsFit, runs: Sequence[Run], which: _Which) -> list[Series]:
    tokens = np.array([run.summary.tokens for run in runs], float)
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
        for budget in budgets([run.summary.flops for run in own]):
            group = sorted((own[index] for index in budget), key=lambda run: run.params)
            x = [run.params for run in group]
            if len(set(x)) >= 3:
                y = [run.loss for run in group]
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
        unit="a point is one training or a branch of one; the parabolas have no interval",
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
        unit="a thin line is one training; the lowest has no interval",
    )
