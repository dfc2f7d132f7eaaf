"""The spread over seeds as a function of a model's size: a power of it, alike in all backends, shrunk to none.

Small models are noisier: at 1m seeds differ four times as much as at 3m. A variance pooled over rungs then makes
intervals too narrow for the small and too wide for the large ones. Here a rung's variance is c N^b, c a backend's own,
b common to all. Given b the sum of squares of a backend's seeds, each over its N^b, is c's chi-squared; b has a normal
prior about 0 (no change with size: the pooled variance), and is integrated out on a grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

Vector = NDArray[np.float64]
POWER_PRIOR = 2.0
"""Standard deviation of b: over a tenfold in size a standard deviation that falls or rises tenfold."""
_POWERS = np.linspace(-8.0, 8.0, 321)
Seeds = tuple[Vector, Vector, Vector]
"""Of a backend's rungs: log sizes, variances over seeds and the degrees of freedom of these, (rungs,) each."""


@dataclass(frozen=True)
class NoisePower:
    """What is known of b, as a normal distribution."""

    mean: float
    deviation: float


NO_SEEDS = NoisePower(0.0, POWER_PRIOR)


@dataclass(frozen=True)
class BySize:
    """Of a backend's rungs, (rungs,) each."""

    estimate: Vector
    """The variance, its logarithm in the mean over b."""
    variance: Vector
    """With ``freedom`` the scaled inverse chi-squared distribution of what the variance may be: the one whose logarithm
    has the right mean and variance."""
    freedom: Vector


def powers_elsewhere(
    backends: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]],
) -> dict[str, NoisePower]:
    """By backend: what the seeds of all others say of b.

    Args:
        backends: of each its runs' parameters, tokens, losses and trainings, as of ``fit_trainings``.
    """
    seeds = {backend: _seeds(*map(np.asarray, runs)) for backend, runs in backends.items()}
    found = {}
    for backend in backends:
        others = [own for other, own in seeds.items() if other != backend and own[1].sum() > 0]
        share = _power_share(others)[0]
        mean = float(share @ _POWERS)
        found[backend] = NoisePower(mean, float(np.sqrt(share @ (_POWERS - mean) ** 2)))
    return found


def _seeds(params: Vector, tokens: Vector, loss: Vector, training: Vector) -> Seeds:
    """Of trainings that have the same size and budgets: their means over these budgets."""
    alike: dict[tuple[float, ...], list[float]] = {}
    for label in np.unique(training):
        own = training == label
        alike.setdefault((float(params[own][0]), *np.sort(tokens[own])), []).append(float(loss[own].mean()))
    several = [(key[0], np.var(means, ddof=1), len(means) - 1) for key, means in alike.items() if len(means) > 1]
    sizes, variances, freedom = np.array(several, float).reshape(-1, 3).T
    return np.log(sizes), variances, freedom


def _power_share(backends: Sequence[Seeds]) -> tuple[Vector, list[tuple[Vector, Vector, float]]]:
    """The posterior of b at ``_POWERS``; and of each backend centred log sizes, its sum of squares at each b, and its
    degrees of freedom."""
    middle = float(np.mean(np.concatenate([sizes for sizes, _, _ in backends]))) if backends else 0.0
    density = -(_POWERS**2) / (2 * POWER_PRIOR**2)
    parts = []
    for sizes, variance, freedom in backends:
        known, x = freedom > 0, sizes - middle
        squares = (freedom * variance)[known] @ np.exp(-_POWERS * x[known, None])
        total = float(freedom.sum())
        density = density - _POWERS / 2 * (freedom @ x) - total / 2 * np.log(squares)
        parts.append((x, squares, total))
    share = np.exp(density - density.max())
    return share / share.sum(), parts


def variances_by_size(backends: Sequence[Seeds]) -> list[BySize]:
    """What the variance is at each rung of each backend.

    Args:
        backends: of each its rungs' seeds (no degree of freedom: unknown, whatever the variance says). Some variance of
            each is known, and above 0.

    At equal sizes it is the pooled variance and its degrees of freedom, exactly.
    """
    share, parts = _power_share(backends)
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
