"""The first figure: every training's loss against executed compute, the laws, and each backend relative to MHA."""

from collections.abc import Sequence

import numpy as np

from dma_lab.report.collect import Run
from dma_lab.report.document import Figure, Panel, Series
from dma_lab.report.statistics import Statistics, ToMatch

_LEAST, _MOST = 1e-2, 1e2
"""Ratios beyond are drawn at these: an axis ends before."""


def evidence(found: Statistics) -> Figure:
    """Of a cohort's finished runs."""
    backends = found.backends
    series: list[Series] = []
    for backend in backends:
        if frontier := found.frontiers.get(backend):
            x = list(frontier.flops)
            series.append(Series(backend, "band", x, list(frontier.low), list(frontier.high)))
            series.append(Series(backend, "line", x, list(frontier.loss)))
    for backend in backends:
        own = [run for run in found.best if run.backend == backend]
        x = [float(run.summary.flops_executed) for run in own]
        series.append(Series(backend, "points", x, [run.loss for run in own], hover=[run.label for run in own]))
    below, said = _relative(found, backends)
    lines = (
        " Lines: the least loss by a backend's law for that compute, at its best size and number of tokens; shade: "
        "95 % over trainings."
        if found.frontiers
        else ""
    )
    without = [backend for backend in backends if backend not in found.frontiers]
    lacking = f" No law: {', '.join(without)}." if found.frontiers and without else ""
    return Figure(
        "evidence",
        "Loss against executed compute",
        f"Points: every training, seed by seed, and every branch of it.{lines}{lacking} {said}",
        "training compute, executed (FLOP)",
        "loss (nats per token)",
        series,
        x_log=True,
        below=below,
        unit="a point is one training or a branch of one; shades are over trainings, bars crossed with documents",
    )


def _relative(found: Statistics, backends: Sequence[str]) -> tuple[Panel | None, str]:
    """The lower panel, and what the caption says of it."""
    if found.to_match:
        series = [
            own for backend in backends if (match := found.to_match.get(backend)) for own in _ratio(backend, match)
        ]
        said = (
            "Below: the compute that a backend needs for MHA's loss, divided by MHA's, by laws with one E (under 1: it "
            "needs less); shade: 95 % over the trainings of both."
        )
        return Panel("compute ÷ MHA's", series, 1.0, ratio=True), said
    series = [own for backend in backends for own in _differences(found, backend)]
    if not series:
        return None, ""
    said = (
        "Below, since no two laws can be held against each other: loss minus MHA's at equal rung and tokens, the mean "
        "over seeds, with 95 % over trainings and documents where seeds tell it."
    )
    return Panel("loss − MHA's", series, 0.0), said


def _ratio(backend: str, match: ToMatch) -> list[Series]:
    known = [own for own in match.over if own.interval is not None and np.isfinite(own.multiplier)]
    if not known:
        return []
    x = [own.flops for own in known]
    low, high = np.clip(np.array([own.interval for own in known]).T, _LEAST, _MOST)
    y = [float(np.clip(own.multiplier, _LEAST, _MOST)) for own in known]
    hover = [f"{backend} at {own.flops:.2e} FLOP of MHA: {own.text}" for own in known]
    return [Series(backend, "band", x, list(low), list(high)), Series(backend, "line", x, y, hover=hover)]


def _differences(found: Statistics, backend: str) -> list[Series]:
    cells = found.comparison.first_cells(backend)
    if not cells:
        return []
    place = {cell.run.path: _place(cell.run) for cell in cells}
    known = [(cell, cell.difference.interval) for cell in cells if cell.difference.interval is not None]
    x = [float(cell.run.summary.flops_executed) for cell in cells]
    y = [cell.difference.difference for cell in cells]
    points = Series(backend, "points", x, y, hover=[f"{backend}, {place[cell.run.path]}" for cell in cells])
    if not known:
        return [points]
    at = [float(cell.run.summary.flops_executed) for cell, _ in known]
    low, high = zip(*(interval for _, interval in known), strict=True)
    return [Series(backend, "intervals", at, list(low), list(high)), points]


def _place(run: Run) -> str:
    return f"{run.rung}, {run.summary.tokens:,} tokens"
