"""The best learning rate of a few: a parabola of the loss in log rate, and how well its lowest point is known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

LEAST_RATES = 3
"""Different ones. Through three a parabola is drawn: how well its lowest point is known the noise over seeds tells."""


@dataclass(frozen=True)
class SeedNoise:
    """Variance of the loss over seeds at equal settings, in squared nats, and its degrees of freedom."""

    variance: float
    freedom: int


@dataclass(frozen=True)
class BestRate:
    """The rate of least loss."""

    rate: float
    """The parabola's lowest point, or the best rate tried where that is none (``edge``)."""
    interval: tuple[float, float] | None
    """95 %; None where the noise leaves it unbounded, and at an edge."""
    edge: Literal["lowest", "highest", "no parabola"] | None
    """The best rate tried is the lowest or highest of them, or losses do not rise to both sides."""
    parabola: tuple[float, float, float, float]
    """Of (log rate − the first): the factors of its square and of itself, and what is added."""
    covariance: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)
    """(3, 3), of these three, times the square of Student's t at 95 %; None where no noise is known."""

    def loss(self, rates: ArrayLike) -> NDArray[np.float64]:
        """The parabola at ``rates``, nats."""
        middle, curve, slope, level = self.parabola
        x = np.log(np.asarray(rates, float)) - middle
        return np.asarray(curve * x**2 + slope * x + level)

    def half_width(self, rates: ArrayLike) -> NDArray[np.float64] | None:
        """Half of the parabola's 95 % interval at ``rates``, nats, by the noise over seeds, if that is known."""
        if self.covariance is None:
            return None
        x = np.log(np.asarray(rates, float)) - self.parabola[0]
        powers = np.stack((x**2, x, np.ones_like(x)), axis=-1)
        return np.asarray(np.sqrt(np.einsum("...i,ij,...j->...", powers, self.covariance, powers)))


def pool_noise(cells: Sequence[Sequence[float]]) -> SeedNoise | None:
    """Of losses that differ in their seeds alone, a cell each; None where no cell has two."""
    own = [np.asarray(cell, float) for cell in cells if len(cell) > 1]
    freedom = sum(len(cell) - 1 for cell in own)
    if not freedom:
        return None
    return SeedNoise(float(sum(((cell - cell.mean()) ** 2).sum() for cell in own)) / freedom, freedom)


def best_rate(rates: Sequence[float], losses: Sequence[float], noise: SeedNoise | None) -> BestRate:
    """The lowest point of the parabola through ``losses`` (nats) over log ``rates``, by least squares.

    Its interval is Fieller's: the points at which a slope of zero is not refuted. That is exact where losses are a
    parabola and noise is normal and alike at all rates, however flat the curve.
    """
    x, y = np.log(np.asarray(rates, float)), np.asarray(losses, float)
    tried = np.unique(x)
    assert len(tried) >= LEAST_RATES, tried
    means = np.array([y[x == rate].mean() for rate in tried])
    best = tried[means.argmin()]
    middle = float(x.mean())
    design = np.stack(((x - middle) ** 2, x - middle, np.ones_like(x)), axis=1)
    curve, slope, level = map(float, np.linalg.lstsq(design, y)[0])
    parabola = middle, curve, slope, level
    covariance = None
    if noise is not None:
        covariance = noise.variance * np.linalg.inv(design.T @ design) * special.stdtrit(noise.freedom, 0.975) ** 2
    if best in (tried[0], tried[-1]):
        return BestRate(math.exp(best), None, "lowest" if best == tried[0] else "highest", parabola, covariance)
    lowest = middle - slope / (2 * curve) if curve > 0 else math.inf
    if not tried[0] <= lowest <= tried[-1]:
        return BestRate(math.exp(best), None, "no parabola", parabola, covariance)
    interval = None
    if covariance is not None:
        # (slope + 2 curve z)² is at most t² times its variance.
        a = 4 * (curve**2 - covariance[0, 0])
        b = 4 * (curve * slope - covariance[0, 1])
        c = slope**2 - covariance[1, 1]
        if a > 0:
            root = math.sqrt(max(0.0, b * b - 4 * a * c))
            interval = (math.exp(middle + (-b - root) / (2 * a)), math.exp(middle + (-b + root) / (2 * a)))
    return BestRate(math.exp(lowest), interval, None, parabola, covariance)
