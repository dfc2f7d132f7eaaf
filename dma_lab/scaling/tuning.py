"""The best learning rate of a few: a polynomial of the loss in log rate, and how well its lowest point is known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from dma_lab.scaling.interval import Interval

Vector = NDArray[np.float64]
Edge = Literal["lowest", "highest", "no minimum"] | None
LEAST_RATES = 3
"""Different ones. Through three a parabola is drawn: how well its lowest point is known the noise over seeds tells."""
_CUBIC = 5
"""Rates from which the curve is a cubic: losses rise faster above the best rate than below it."""
_REFUTED = 0.01
_GRID = 2001
_BEYOND = 0.8
"""How far beyond the rates tried an interval is looked for, in log rate: two factors of 1.5."""


@dataclass(frozen=True)
class SeedNoise:
    """Variance of the loss over seeds at equal settings, in squared nats, and its degrees of freedom."""

    variance: float
    freedom: int


@dataclass(frozen=True)
class Curve:
    """The loss as a polynomial of log rate."""

    coefficients: Vector
    """(k,), highest power first, of the log rate itself."""
    covariance: Vector | None = field(compare=False)
    """(k, k), times the square of Student's t at 95 %; None where no noise is known."""

    def over(self, unit: float) -> "Curve":
        """The same curve of log(rate / unit), as a cubic."""
        power = len(self.coefficients) - 1
        moved = np.zeros((4, power + 1))
        for column in range(power + 1):
            degree = power - column
            # (x + log unit) to the power `degree`.
            moved[3 - degree :, column] = np.poly1d([1.0, math.log(unit)]) ** degree
        covariance = None if self.covariance is None else moved @ self.covariance @ moved.T
        return Curve(moved @ self.coefficients, covariance)

    def lowest(self, low: float, high: float) -> float | None:
        """Log rate of its minimum, of which a cubic has one at most; None where that is not within ``low`` to
        ``high``.
        """
        slope = np.polyder(self.coefficients)
        turns = np.roots(slope)
        real = turns[np.isreal(turns)].real
        found = real[(np.polyval(np.polyder(slope), real) > 0) & (low <= real) & (real <= high)]
        return float(found[0]) if len(found) else None

    def interval(self, lowest: float, low: float, high: float) -> Interval | None:
        """95 % of ``lowest``, as rates: about it, where a slope of zero is not refuted (Fieller's, of a polynomial);
        None where that leads out of ``low`` to ``high``, and without noise.
        """
        if self.covariance is None:
            return None
        at = np.union1d(np.linspace(low, high, _GRID), [lowest])
        power = len(self.coefficients) - 1
        slopes = np.zeros((len(at), power + 1))
        slopes[:, :-1] = np.vander(at, power) * np.arange(power, 0, -1)
        variance = np.einsum("ij,jk,ik->i", slopes, self.covariance, slopes)
        refuted = np.flatnonzero((slopes @ self.coefficients) ** 2 > variance)
        middle = int(np.searchsorted(at, lowest))
        below, above = refuted[refuted < middle], refuted[refuted > middle]
        if not len(below) or not len(above):
            return None
        return math.exp(at[below[-1]]), math.exp(at[above[0]])


@dataclass(frozen=True)
class BestRate:
    """The rate of least loss."""

    rate: float
    """The curve's lowest point, or the best rate tried where that is none (``edge``)."""
    interval: Interval | None
    """95 %; None where the noise leaves it unbounded, and at an edge."""
    edge: Edge
    """The best rate tried is the lowest or highest of them, or losses do not rise to both sides."""
    fitted: tuple[float, ...]
    """The rates that the curve is fitted to."""
    centre: float
    curve: Curve
    """Of rate / ``centre``."""

    def loss(self, rates: ArrayLike) -> Vector:
        """The curve at ``rates``, nats."""
        return np.asarray(np.polyval(self.curve.coefficients, np.log(np.asarray(rates, float) / self.centre)))

    def half_width(self, rates: ArrayLike) -> Vector | None:
        """Half of the curve's 95 % interval at ``rates``, nats, by the noise over seeds, if that is known."""
        if self.curve.covariance is None:
            return None
        x = np.log(np.asarray(rates, float) / self.centre)
        powers = x[..., None] ** np.arange(len(self.curve.coefficients) - 1, -1, -1)
        return np.asarray(np.sqrt(np.einsum("...i,ij,...j->...", powers, self.curve.covariance, powers)))


def pool_noise(cells: Sequence[Sequence[float]]) -> SeedNoise | None:
    """Of losses that differ in their seeds alone, a cell each; None where no cell has two."""
    own = [np.asarray(cell, float) for cell in cells if len(cell) > 1]
    freedom = sum(len(cell) - 1 for cell in own)
    if not freedom:
        return None
    return SeedNoise(float(sum(((cell - cell.mean()) ** 2).sum() for cell in own)) / freedom, freedom)


def best_rate(rates: Sequence[float], losses: Sequence[float], noise: SeedNoise | None) -> BestRate:
    """The lowest point of a curve through ``losses`` (nats) over log ``rates``, by least squares.

    A cubic where there are five rates, else a parabola. Where the noise over seeds refutes even the cubic (an F test of
    lack of fit at 1 %), the rate farthest from the best tried is left out, and so on down to five. The interval holds
    95 % where losses follow the curve and noise is normal and alike at all rates, however flat the curve.
    """
    x, y = np.log(np.asarray(rates, float)), np.asarray(losses, float)
    tried = np.unique(x)
    assert len(tried) >= LEAST_RATES, tried
    best = tried[np.argmin([y[x == rate].mean() for rate in tried])]
    edge: Edge = "lowest" if best == tried[0] else "highest" if best == tried[-1] else None
    while edge is None and noise is not None and len(tried) > _CUBIC and _refuted(x, y, noise):
        sides = (tried[tried < best], tried[tried > best])
        others = np.concatenate([side for side in sides if len(side) > 1])
        kept = x != others[np.abs(others - best).argmax()]
        x, y = x[kept], y[kept]
        tried = np.unique(x)
    centre = float(x.mean())
    design = _design(x - centre)
    covariance = None
    if noise is not None:
        covariance = noise.variance * np.linalg.inv(design.T @ design) * special.stdtrit(noise.freedom, 0.975) ** 2
    curve = Curve(np.linalg.lstsq(design, y)[0], covariance)
    rate, interval = float(best), None
    if edge is None:
        low, high = tried[0] - centre, tried[-1] - centre
        if (lowest := curve.lowest(low, high)) is None:
            edge = "no minimum"
        else:
            rate, interval = centre + lowest, curve.interval(lowest, low - _BEYOND, high + _BEYOND)
    unit = math.exp(centre)
    ends = None if interval is None else (unit * interval[0], unit * interval[1])
    return BestRate(math.exp(rate), ends, edge, tuple(map(float, np.exp(tried))), unit, curve)


def best_multiplier(found: Sequence[tuple[BestRate, float]]) -> tuple[float, Interval | None] | None:
    """Of several rungs' best rates, none at an edge, each with what it is a multiple of: the one multiplier of least
    loss summed over the rungs, and its 95 % interval; None where the sum has no lowest point. A flat curve has little
    say in it.
    """
    curves = [best.curve.over(unit / best.centre) for best, unit in found]
    known = [curve.covariance for curve in curves if curve.covariance is not None]
    covariance = np.sum(known, axis=0) if len(known) == len(curves) else None
    together = Curve(np.sum([curve.coefficients for curve in curves], axis=0), covariance)
    low = max(math.log(best.fitted[0] / unit) for best, unit in found)
    high = min(math.log(best.fitted[-1] / unit) for best, unit in found)
    lowest = together.lowest(low, high) if low < high else None
    if lowest is None:
        return None
    return math.exp(lowest), together.interval(lowest, low - _BEYOND, high + _BEYOND)


def _design(x: Vector) -> Vector:
    return np.vander(x, 4 if len(np.unique(x)) >= _CUBIC else 3)


def _refuted(x: Vector, y: Vector, noise: SeedNoise) -> bool:
    """Whether the means at each of ``x`` lie farther from a cubic than ``noise`` explains."""
    values, counts = np.unique(x, return_counts=True)
    if not noise.variance:
        return False
    design = _design(x - x.mean())
    curve = design @ np.linalg.lstsq(design, y)[0]
    apart = np.array([(y - curve)[x == value].mean() for value in values])
    freedom = len(values) - design.shape[1]
    return bool(special.fdtrc(freedom, noise.freedom, (counts * apart**2).sum() / freedom / noise.variance) < _REFUTED)
