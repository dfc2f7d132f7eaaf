"""Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2): isoFLOP parabolas.

Runs of several sizes at one compute: near its minimum their loss is a parabola in log N, and the minimum the
compute-optimal size. Far from it the loss is none: what a parabola through all sizes of a wide grid misses is no noise,
and moves the minimum. The minima of several budgets give N* ∝ C^a and D* ∝ C^b.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dma_lab.messages import UserError
from dma_lab.scaling.cost import Cost
from dma_lab.scaling.interval import Interval, percentile_interval, require_resamples
from dma_lab.scaling.objective import take_points
from dma_lab.scaling.power_law import PowerLaw, fit_power_law

Vector = NDArray[np.float64]
SAME_BUDGET = 0.1
"""Largest relative difference of compute within a budget."""
NEAR = float(np.log(4))
"""Sizes within a factor of 4 of the minimum make the parabola."""
_LEAST_SIZES = 5
"""Where fewer are so near, the nearest 5, or all of a budget that has no more."""
_OWN_FREEDOM = 6
"""Residuals beyond three from which a budget's own tell its noise; with fewer, all such budgets' together."""


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
    """(runs,): of those near the minimum, which the parabola is fitted to."""
    residuals: Vector
    """(runs,): loss of these runs minus that of the parabola, nats per token."""
    sizes: Interval
    """The smallest and the largest of all sizes run."""
    cost: Cost
    params_interval: Interval | None = None
    """95 % (``fit_isoflop``); its ends are infinite where the noise does not exclude that there is no minimum."""

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
    """Least squares through the runs of one budget that are near its minimum; (runs,) each, loss in nats per token.

    The tokens at the minimum are what the budget pays for at the runs' own FLOP per token.

    Raises:
        UserError: fewer than three sizes; runs of more than one budget; a loss that is none; a parabola without a
            minimum, or with one outside the sizes run.
    """
    flops, params, tokens, loss = (np.asarray(values, float) for values in (flops, params, tokens, loss))
    take_points(params, tokens, loss)
    if flops.max() > flops.min() * (1 + SAME_BUDGET):
        raise UserError(
            f"runs of {flops.min():.3g} to {flops.max():.3g} FLOP do not share one budget, which a parabola needs; fit "
            f"those that agree within {SAME_BUDGET:.0%}, or run them at one compute."
        )
    sizes, budget = np.unique(params), float(np.exp(np.log(flops).mean()))
    if len(sizes) < 3:
        raise UserError(f"at {budget:.3g} FLOP there are {len(sizes)} sizes; a parabola needs runs of at least 3.")
    every = np.log(params)
    near = _near_minimum(every, loss)
    log_n, loss = every[near], loss[near]
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
        budget,
        float(best),
        float(best_tokens),
        float(lowest),
        coefficients,
        centre,
        log_n,
        residuals,
        (float(sizes[0]), float(sizes[-1])),
        cost,
    )


def _near_minimum(log_n: Vector, loss: Vector) -> NDArray[np.bool_]:
    """Which runs are near the minimum: first of the run of least loss, then of the parabola through those near."""
    sizes, minimum, near = np.unique(log_n), log_n[loss.argmin()], np.zeros(len(loss), bool)
    for _ in range(10):
        distances = np.sort(np.abs(sizes - minimum))
        before, near = near, np.abs(log_n - minimum) <= max(NEAR, distances[:_LEAST_SIZES][-1]) + 1e-9
        coefficients = np.polyfit(log_n[near] - minimum, loss[near], 2)
        if (near == before).all() or coefficients[0] <= 0:
            break
        minimum = np.clip(minimum - coefficients[1] / (2 * coefficients[0]), sizes[0], sizes[-1])
    return near


def fit_isoflop(parabolas: Sequence[Parabola], *, bootstrap: int = 0, seed: int = 0) -> IsoflopFit:
    """Power laws through the minima.

    Intervals are those of a parametric bootstrap: few runs per budget cannot be resampled (three of them fix their
    parabola whatever they are), so noise of the spread that residuals show is drawn anew: a budget's own where it has
    enough, those of all that have not, together. The spread, too, is uncertain by the few residuals it is known from,
    and drawn with it, as Student's t does. Where a resample's parabola has no minimum within the sizes run the power
    law goes through the other budgets', as it does with runs, if there are two. Without a single run beyond three a
    budget nothing tells the noise, and there are no intervals.

    Raises:
        UserError: fewer than two budgets; fewer than 20 resamples, where they are asked for.
    """
    flops = np.array([parabola.flops for parabola in parabolas])
    if len(budgets(flops)) < 2:
        raise UserError(f"{len(parabolas)} isoFLOP minima give no power law; it needs those of at least 2 budgets.")
    params = np.array([parabola.params for parabola in parabolas])
    tokens = np.array([parabola.tokens for parabola in parabolas])
    if not bootstrap or not any(parabola.freedom for parabola in parabolas):
        return IsoflopFit(parabolas, fit_power_law(flops, params), fit_power_law(flops, tokens))
    require_resamples(bootstrap)
    generator = np.random.default_rng(seed)
    spreads = _spreads(parabolas, bootstrap, generator)
    drawn = [_redrawn(parabola, spread, generator) for parabola, spread in zip(parabolas, spreads, strict=True)]
    drawn_tokens = [
        parabola.flops / parabola.cost.flops_per_token(sizes) for parabola, sizes in zip(parabolas, drawn, strict=True)
    ]
    known = _known(parabolas, drawn)
    return IsoflopFit(
        [
            dataclasses.replace(parabola, params_interval=percentile_interval(sizes))
            for parabola, sizes in zip(parabolas, drawn, strict=True)
        ],
        fit_power_law(flops, params, _rows(flops, drawn, known)),
        fit_power_law(flops, tokens, _rows(flops, drawn_tokens, known)),
    )


def _spreads(parabolas: Sequence[Parabola], count: int, generator: np.random.Generator) -> list[Vector]:
    """Of each budget, its noise's standard deviation as ``count`` draws: sum of squares over chi-square."""
    few = [parabola for parabola in parabolas if parabola.freedom < _OWN_FREEDOM]
    if not sum(parabola.freedom for parabola in few):
        few = list(parabolas)
    squares = sum(float(parabola.residuals @ parabola.residuals) for parabola in few)
    together = np.sqrt(squares / generator.chisquare(sum(parabola.freedom for parabola in few), count))
    return [
        together
        if parabola.freedom < _OWN_FREEDOM
        else np.sqrt(parabola.residuals @ parabola.residuals / generator.chisquare(parabola.freedom, count))
        for parabola in parabolas
    ]


def _known(parabolas: Sequence[Parabola], drawn: Sequence[Vector]) -> NDArray[np.bool_]:
    """(resamples, budgets): whose minimum a resample's power law goes through.

    Those within the sizes run, where they are two at least; a line through fewer there is none of, and goes through all
    minima that there are.
    """
    sizes = np.stack(drawn, axis=1)
    low, high = np.array([parabola.sizes for parabola in parabolas]).T
    inside = (sizes >= low) & (sizes <= high)
    return np.where(inside.sum(axis=1, keepdims=True) >= 2, inside, np.isfinite(sizes))


def _rows(flops: Vector, drawn: Sequence[Vector], known: NDArray[np.bool_]) -> Iterator[tuple[Vector, Vector]]:
    """Of every resample, the FLOP of the budgets it knows, and what was drawn of them."""
    for row, of in zip(np.stack(drawn, axis=1), known, strict=True):
        yield flops[of], row[of]


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
