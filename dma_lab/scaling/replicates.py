"""A mean difference over trainings and documents, and its interval: what other seeds on other text would have given.

Seeds and documents are two crossed samples: every seed's models score the same documents. The mean varies by both, and
by what a document does to one training alone, which either variance contains and their sum must hold once only (as in
the analysis of variance of a two-way layout with random factors).

Two seeds tell their own spread to a factor of thirty. Where a cell has few, that of all replicated rungs stands for it,
as a smooth function of size (dma_lab/scaling/noise_by_size.py); budgets that are branches of the same trainings share
their noise, and count as one rung's.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from dma_lab.scaling.documents import LEAST_DOCUMENTS, effective_number, mean_variance
from dma_lab.scaling.documents import freedom as document_freedom
from dma_lab.scaling.interval import Interval
from dma_lab.scaling.noise_by_size import variances_by_size

Vector = NDArray[np.float64]
_KNOWN_FREEDOM = 3
"""Degrees of freedom from which a spread's tail is short enough to be summed with the documents'."""
OWN_FREEDOM = 4
"""Degrees of freedom from which the spread of a rung's own seeds stands alone: five seeds."""


@dataclass(frozen=True)
class Cell:
    """One backend against another at one rung and budget."""

    nats: Vector
    """(seeds, documents): loss of the one minus that of the other, of trainings with the same seed, summed over each
    document's tokens."""
    tokens: Vector
    """(documents,), all above 0."""
    rung: Hashable
    """Equal in cells whose trainings share noise: budgets of one rung, as branches of the same trainings."""
    size: float
    """Non-embedding parameters: noise changes with it."""


@dataclass(frozen=True)
class MeanDifference:
    """The mean difference of a cell over its seeds, nats per token."""

    difference: float
    seeds: int
    documents: int
    effective_documents: float
    spread: float | None
    """Standard deviation over seeds that the interval has in it: None where no rung has two seeds."""
    pooled: bool
    """Whether ``spread`` is what the seeds of several rungs say, as a smooth function of size."""
    interval: Interval | None
    """95 %: of the mean over all seeds and, with ``over_documents``, over all documents of the kind."""
    over_documents: bool
    """Whether documents are in the interval: not of fewer than 20 effective ones. It then speaks of these documents."""
    p_value: float | None
    """Two-sided, that the mean over all seeds (and documents) is 0."""


def mean_differences(backends: Sequence[Sequence[Cell]]) -> list[list[MeanDifference]]:
    """Of all cells of each backend, in their order; how noise falls with size is taken to be alike in all of them."""
    parts = [[_parts(cell) for cell in cells] for cells in backends]
    spreads = [_by_rung(cells, own) for cells, own in zip(backends, parts, strict=True)]
    smooth = _smooth(backends, spreads)
    found = []
    for cells, own_parts, rungs, smoothed in zip(backends, parts, spreads, smooth, strict=True):
        freedom = sum(rung.freedom for rung in rungs.values())
        own_found = []
        for cell, part in zip(cells, own_parts, strict=True):
            own = rungs[cell.rung]
            # A cell with one seed has no spread of its own, were its rung's other budgets replicated ever so often.
            alone = own.freedom >= OWN_FREEDOM or own.freedom == freedom
            own_found.append(_mean_difference(cell, part, own if alone else smoothed[cell.rung], pooled=not alone))
        found.append(own_found)
    return found


@dataclass(frozen=True)
class _Parts:
    """Variances of one cell; ``nan`` where it has a single seed."""

    mean: float
    seeds: int
    over_seeds: float
    """Of the seeds' means, each over these documents."""
    documents: float
    """Of the mean over seeds, by the choice of documents."""
    interaction: float
    """What documents add to a single seed's mean and not to another's: a part of ``over_seeds``."""


@dataclass(frozen=True)
class _Spread:
    """Variances of a seed's mean, with their degrees of freedom."""

    over_seeds: float
    interaction: float
    freedom: float
    estimate: float
    """What ``over_seeds`` most likely is; with few degrees of freedom a smoothed one is less, and its tail longer."""


def _by_rung(cells: Sequence[Cell], parts: Sequence[_Parts]) -> dict[Hashable, _Spread]:
    of: dict[Hashable, list[_Parts]] = {}
    for cell, part in zip(cells, parts, strict=True):
        of.setdefault(cell.rung, []).append(part)
    return {rung: _pool(own) for rung, own in of.items()}


def _parts(cell: Cell) -> _Parts:
    means = cell.nats.sum(axis=1) / cell.tokens.sum()
    seeds = len(means)
    documents = float(mean_variance(cell.nats.mean(axis=0), cell.tokens)) if len(cell.tokens) > 1 else 0.0
    if seeds < 2:
        return _Parts(float(means[0]), 1, np.nan, documents, np.nan)
    alone = float(mean_variance(cell.nats, cell.tokens).mean()) if len(cell.tokens) > 1 else 0.0
    interaction = max(0.0, (alone - documents) * seeds / (seeds - 1))
    return _Parts(float(means.mean()), seeds, float(means.var(ddof=1)), documents, interaction)


def _pool(parts: Sequence[_Parts]) -> _Spread:
    """Of the budgets of one rung: they share their trainings, so three of them have no more degrees of freedom."""
    replicated = [part for part in parts if part.seeds > 1]
    if not replicated:
        return _Spread(np.nan, np.nan, 0, np.nan)
    weights = [part.seeds - 1 for part in replicated]
    over_seeds = float(np.average([part.over_seeds for part in replicated], weights=weights))
    interaction = float(np.average([part.interaction for part in replicated], weights=weights))
    return _Spread(over_seeds, interaction, max(weights), over_seeds)


def _smooth(
    backends: Sequence[Sequence[Cell]], spreads: Sequence[dict[Hashable, _Spread]]
) -> list[dict[Hashable, _Spread]]:
    """At every rung what the seeds of all rungs say; no backend that has seeds without spread has any."""
    squares = [sum(own.freedom * own.over_seeds for own in rungs.values() if own.freedom) for rungs in spreads]
    known = [number for number, value in enumerate(squares) if value > 0]
    found: list[dict[Hashable, _Spread]] = [
        dict.fromkeys(rungs, _Spread(np.nan, np.nan, 0, np.nan)) for rungs in spreads
    ]
    if not known:
        return found
    columns = []
    for number in known:
        rungs, size = spreads[number], {cell.rung: cell.size for cell in backends[number]}
        freedom = np.array([float(own.freedom) for own in rungs.values()])
        variance = np.array([own.over_seeds if own.freedom else 0.0 for own in rungs.values()])
        columns.append((np.log([size[rung] for rung in rungs]), variance, freedom))
    for number, smooth in zip(known, variances_by_size(columns), strict=True):
        rungs = spreads[number]
        # Of the spread a part as large as over all rungs.
        interaction = sum(own.freedom * own.interaction for own in rungs.values() if own.freedom) / squares[number]
        values = zip(smooth.variance, smooth.freedom, smooth.estimate, strict=True)
        for rung, (variance, own_freedom, estimate) in zip(rungs, values, strict=True):
            of_rung = float(variance), float(interaction * variance), float(own_freedom), float(estimate)
            found[number][rung] = _Spread(*of_rung)
    return found


def _mean_difference(cell: Cell, part: _Parts, spread: _Spread, *, pooled: bool) -> MeanDifference:
    effective = effective_number(cell.tokens)
    over_documents = effective >= LEAST_DOCUMENTS
    if not spread.freedom or spread.over_seeds == 0:
        sizes = (part.mean, part.seeds, len(cell.tokens), effective)
        return MeanDifference(*sizes, None, False, None, over_documents, None)
    of_seeds, of_documents = spread.over_seeds / part.seeds, part.documents if over_documents else 0.0
    # What the two share counts once; neither alone is more than the whole.
    both = min(spread.interaction / part.seeds, of_seeds, of_documents)
    of_both = of_seeds + of_documents - both
    freedom = document_freedom(cell.tokens) if of_documents else 1.0
    if spread.freedom >= _KNOWN_FREEDOM:
        # Satterthwaite 1946: degrees of freedom of a sum of variances.
        parts = [(of_both, (of_seeds + of_documents) ** 2 / (of_seeds**2 / spread.freedom + of_documents**2 / freedom))]
    else:
        # Zou and Donner 2008: squares of half widths add up. In one number of degrees of freedom the long tail of a
        # spread that is hardly known would be lost in the documents'.
        parts = [(of_seeds, spread.freedom), (of_documents - both, freedom)]

    def reach(p: float) -> float:
        return float(np.sqrt(sum(special.stdtrit(own, 1 - p / 2) ** 2 * variance for variance, own in parts)))

    half = reach(0.05)
    return MeanDifference(
        part.mean,
        part.seeds,
        len(cell.tokens),
        effective,
        float(np.sqrt(spread.estimate)),
        pooled,
        (part.mean - half, part.mean + half),
        over_documents,
        _p_value(reach, abs(part.mean)),
    )


def _p_value(reach: Callable[[float], float], distance: float) -> float:
    """At which an interval that reaches so far just holds 0."""
    if reach(1e-15) <= distance:
        return 1e-15
    return float(np.exp(optimize.brentq(lambda log: reach(np.exp(log)) - distance, np.log(1e-15), 0.0, xtol=1e-10)))
