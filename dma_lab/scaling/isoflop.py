"""Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2): isoFLOP parabolas.

Runs of several sizes at one compute: their loss is a parabola in log N, whose minimum is the compute-optimal size. The
minima of several budgets give N* ∝ C^a and D* ∝ C^b.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dma_lab.messages import UserError
from dma_lab.scaling.cost import Cost
from dma_lab.scaling.interval import Interval, percentile_interval
from dma_lab.scaling.power_law import PowerLaw, fit_power_law

Vector = NDArray[np.float64]
SAME_BUDGET = 0.1
"""Largest relative difference of compute within a budget."""


@dataclass(frozen=True)
class Parabola:
    """The parabola of one budget and its minimum."""

    flops: float
    """Geometric mean of the runs'."""
    params: float
    """At the minimum, as the two that follow."""
    tokens: float
    loss: float
    coefficients: Vector
    """(3,): of x², x and 1, x = log N - centre."""
    centre: float
    log_params: Vector
    """(runs,)"""
    residuals: Vector
    """(runs,): loss of the runs minus that of the parabola, nats a token."""
    cost: Cost
    params_interval: Interval | None = None
    """95 %, by the noise of all budgets together (``fit_isoflop``)."""

    def predict(self, params: ArrayLike) -> Vector:
        """Loss of a model of ``params`` parameters trained for this budget."""
        return np.polyval(self.coefficients, np.log(np.asarray(params, float)) - self.centre)

    @property
    def freedom(self) -> int:
        """Runs beyond the three that fix a parabola."""
        return len(self.residuals) - 3


@dataclass(frozen=True)
class IsoflopFit:
    """Minima of all budgets, and how they grow."""

    parabolas: Sequence[Parabola]
    params: PowerLaw
    tokens: PowerLaw


def budgets(flops: ArrayLike) -> list[NDArray[np.intp]]:
    """Indices of the runs of each budget, by rising compute: runs within 10 % of a budget's cheapest belong to it."""
    flops = np.asarray(flops, float)
    groups: list[list[int]] = []
    for index in np.argsort(flops, kind="stable"):
        if groups and flops[index] <= flops[groups[-1][0]] * (1 + SAME_BUDGET):
            groups[-1].append(index)
        else:
            groups.append([index])
    return [np.array(group) for group in groups]


def fit_parabola(flops: ArrayLike, params: ArrayLike, tokens: ArrayLike, loss: ArrayLike) -> Parabola:
    """Least squares through the runs of one budget, (runs,) each; loss in nats a token.

    The tokens at the minimum are what the budget pays for at the runs' own FLOP a token.

    Raises:
        UserError: fewer than three sizes; a parabola without a minimum, or with one outside the sizes run.
    """
    flops, params, loss = (np.asarray(values, float) for values in (flops, params, loss))
    sizes, budget = np.unique(params), float(np.exp(np.log(flops).mean()))
    if len(sizes) < 3:
        raise UserError(f"at {budget:.3g} FLOP there are {len(sizes)} sizes; a parabola needs runs of at least 3.")
    log_n = np.log(params)
    centre = float(log_n.mean())
    coefficients = np.polyfit(log_n - centre, loss, 2)
    between = f"{sizes[0]:.3g} to {sizes[-1]:.3g} parameters"
    if coefficients[0] <= 0:
        raise UserError(
            f"at {budget:.3g} FLOP the parabola through {len(loss)} runs of {between} opens downward: it has no "
            "minimum; run more sizes, or more seeds."
        )
    best, lowest = _minima(coefficients, centre)
    if not sizes[0] <= best <= sizes[-1]:
        ends = "larger" if best > sizes[-1] else "smaller"
        raise UserError(
            f"at {budget:.3g} FLOP the parabola's minimum, at {best:.3g} parameters, lies outside the sizes run, "
            f"{between}; run {ends} sizes."
        )
    cost = Cost.of_runs(params, tokens, flops)
    residuals = loss - np.polyval(coefficients, log_n - centre)
    best_tokens = budget / cost.flops_per_token(best)
    return Parabola(
        budget, float(best), float(best_tokens), float(lowest), coefficients, centre, log_n, residuals, cost
    )


def fit_isoflop(parabolas: Sequence[Parabola], *, bootstrap: int = 0, seed: int = 0) -> IsoflopFit:
    """Power laws through the minima.

    Intervals are those of a parametric bootstrap: few runs a budget cannot be resampled (three of them fix their
    parabola whatever they are), so noise of the spread that the residuals of all budgets show is drawn anew. The
    spread, too, is uncertain by the few residuals it is known from, and drawn with it, as Student's t does. Without a
    single run beyond three a budget nothing tells the noise, and there are no intervals.

    Raises:
        UserError: fewer than two budgets.
    """
    if len(parabolas) < 2:
        raise UserError(f"{len(parabolas)} isoFLOP minima give no power law; it needs those of at least 2 budgets.")
    flops = np.array([parabola.flops for parabola in parabolas])
    params = np.array([parabola.params for parabola in parabolas])
    tokens = np.array([parabola.tokens for parabola in parabolas])
    freedom = sum(parabola.freedom for parabola in parabolas)
    if not bootstrap or not freedom:
        return IsoflopFit(parabolas, fit_power_law(flops, params), fit_power_law(flops, tokens))
    generator = np.random.default_rng(seed)
    squares = sum(float(parabola.residuals @ parabola.residuals) for parabola in parabolas)
    spread = np.sqrt(squares / generator.chisquare(freedom, bootstrap))
    drawn_params = np.stack([_redrawn(parabola, spread, generator) for parabola in parabolas], axis=1)
    drawn_tokens = np.stack(
        [
            parabola.flops / parabola.cost.flops_per_token(drawn)
            for parabola, drawn in zip(parabolas, drawn_params.T, strict=True)
        ],
        axis=1,
    )
    return IsoflopFit(
        [
            dataclasses.replace(parabola, params_interval=percentile_interval(drawn))
            for parabola, drawn in zip(parabolas, drawn_params.T, strict=True)
        ],
        fit_power_law(flops, params, ((flops, row) for row in drawn_params)),
        fit_power_law(flops, tokens, ((flops, row) for row in drawn_tokens)),
    )


def _redrawn(parabola: Parabola, spread: Vector, generator: np.random.Generator) -> Vector:
    """Sizes at the minimum (resamples,) with noise of ``spread`` (resamples,) on the runs; NaN without a minimum."""
    noise = spread * generator.normal(size=(len(parabola.log_params), len(spread)))
    changes = np.polyfit(parabola.log_params - parabola.centre, noise, 2)
    return _minima(parabola.coefficients[:, None] + changes, parabola.centre)[0]


def _minima(coefficients: Vector, centre: float) -> tuple[Vector, Vector]:
    """Parameters and loss at the minimum of each parabola, coefficients (3, ...)."""
    square, linear, constant = coefficients
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        at = np.where(square > 0, -linear / (2 * square), np.nan)
        return np.exp(centre + at), constant + linear * at / 2
