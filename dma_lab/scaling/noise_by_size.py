"""The spread over seeds as a function of a model's size: a power of it, alike in all backends, shrunk to none.

Small models are noisier: at 1m seeds differ four times as much as at 3m. A variance pooled over rungs then makes
intervals too narrow for the small and too wide for the large ones. Here a rung's variance is c N^b, c a backend's own,
b common to all. Given b the sum of squares of a backend's seeds, each over its N^b, is c's chi-squared; b has a normal
prior about 0 (no change with size: the pooled variance), and is integrated out on a grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Vector = NDArray[np.float64]
POWER_PRIOR = 1.0
"""Standard deviation of b: over a tenfold in size a standard deviation that falls or rises threefold."""
_POWERS = np.linspace(-4.0, 4.0, 161)


@dataclass(frozen=True)
class BySize:
    """Of a backend's rungs, (rungs,) each."""

    estimate: Vector
    """The variance, its logarithm in the mean over b."""
    variance: Vector
    """With ``freedom`` the scaled inverse chi-squared distribution of what the variance may be: the one whose logarithm
    has the right mean and variance."""
    freedom: Vector


def variances_by_size(backends: Sequence[tuple[Vector, Vector, Vector]]) -> list[BySize]:
    """What the variance is at each rung of each backend.

    Args:
        backends: of each its rungs' log sizes, variances over seeds, and the degrees of freedom of these (0: unknown,
            whatever the variance says), (rungs,) each. Some variance of each backend is known, and above 0.

    At equal sizes it is the pooled variance and its degrees of freedom, exactly.
    """
    middle = float(np.mean(np.concatenate([sizes for sizes, _, _ in backends])))
    density = -(_POWERS**2) / (2 * POWER_PRIOR**2)
    parts = []
    for sizes, variance, freedom in backends:
        known, x = freedom > 0, sizes - middle
        squares = (freedom * variance)[known] @ np.exp(-_POWERS * x[known, None])
        total = float(freedom.sum())
        density = density - _POWERS / 2 * (freedom @ x) - total / 2 * np.log(squares)
        parts.append((x, squares, total))
    share = np.exp(density - density.max())
    share /= share.sum()
    found = []
    for x, squares, total in parts:
        logs = np.log(squares / total) + x[:, None] * _POWERS
        mean = logs @ share
        spread = special.polygamma(1, total / 2) + ((logs - mean[:, None]) ** 2) @ share
        freedom = np.array([_freedom(float(value)) for value in spread])
        moved = _log_bias(freedom) - _log_bias(np.array(total))
        found.append(BySize(np.exp(mean), np.exp(mean + moved), freedom))
    return found


def _log_bias(freedom: Vector) -> Vector:
    """Of a sample variance: how far its logarithm lies below that of the true one, in the mean."""
    return np.asarray(special.digamma(freedom / 2) - np.log(freedom / 2))


def _freedom(variance: float) -> float:
    """Degrees of freedom at which the logarithm of a chi-squared variable has this variance."""
    root = optimize.brentq(lambda log: special.polygamma(1, np.exp(log) / 2) - variance, -9.0, 18.0, xtol=1e-13)
    return float(np.exp(root))
