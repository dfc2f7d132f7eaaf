"""How compute-optimal sizes and tokens grow with compute: straight lines in logarithms."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dma_lab.scaling.interval import Interval, percentile_interval

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient · C^exponent, C in FLOP; its exponent's 95 % interval when resampled."""

    coefficient: float
    exponent: float
    exponent_interval: Interval | None = None

    def at(self, flops: ArrayLike) -> Vector:
        """y at ``flops``."""
        return self.coefficient * np.asarray(flops, float) ** self.exponent


def fit_power_law(flops: Vector, values: Vector, resampled: Iterable[tuple[Vector, Vector]] = ()) -> PowerLaw:
    """Least squares in logarithms through ``flops`` and ``values`` (points,), at least two.

    Args:
        flops: FLOP.
        values: parameters or tokens.
        resampled: what each resample found in their place; one with fewer than two points, or with a point that is
            NaN, gives no line.
    """
    coefficient, exponent = _line(flops, values)
    exponents = np.array([_line(*pair)[1] for pair in resampled])
    if not len(exponents):
        return PowerLaw(coefficient, exponent)
    return PowerLaw(coefficient, exponent, percentile_interval(exponents))


def _line(flops: Vector, values: Vector) -> tuple[float, float]:
    x, y = np.log(flops), np.log(values)
    if len(x) < 2 or np.ptp(x) == 0 or not np.isfinite(y).all():
        return np.nan, np.nan
    centred = x - x.mean()
    exponent = centred @ y / (centred @ centred)
    with np.errstate(over="ignore"):  # a resample's line may be so steep that it meets 1 FLOP beyond all floats
        return float(np.exp(y.mean() - exponent * x.mean())), float(exponent)
