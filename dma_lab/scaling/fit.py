"""The parametric scaling law, L(N, D) = E + A / N^alpha + B / D^beta, fitted to runs.

Approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556, equations 2 to 4 and section D.2): minimise the sum over runs of
Huber_delta(log-sum-exp(a - alpha log N, b - beta log D, e) - log L) with a = log A, b = log B, e = log E, by L-BFGS
from many starts; the best minimum wins. Besiroglu et al. 2024 (arXiv 2404.10102) redid it on the paper's own points.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dma_lab.scaling.cost import SIX_PER_PARAMETER
from dma_lab.scaling.frontier import best_allocation
from dma_lab.scaling.identification import require_enough, require_identified, require_plane, require_spread
from dma_lab.scaling.interval import Interval, percentile_interval
from dma_lab.scaling.objective import ONE_LAW, Vector, one_blas_thread, resampled_minima, take_points
from dma_lab.scaling.search import search

_NO_FLOOR = 1e-3
"""Nats per token; E below is 0."""
_PARAMETERS = ("E", "A", "B", "alpha", "beta")


@dataclass(frozen=True)
class ParametricFit:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats per token; N parameters, D tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    objective: float
    """The sum of Huber losses at the minimum."""
    intervals: dict[str, Interval] | None = None
    """95 % bootstrap percentile intervals of the five parameters."""
    samples: NDArray[np.float64] | None = dataclasses.field(default=None, repr=False)
    """(bootstrap, 5): the resampled fits, columns E, A, B, alpha, beta."""

    def predict(self, params: ArrayLike, tokens: ArrayLike) -> NDArray[np.float64]:
        """Loss of models of ``params`` parameters trained on ``tokens`` tokens."""
        params, tokens = np.asarray(params, float), np.asarray(tokens, float)
        return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta

    def optimal(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of least loss under 6 N D = ``flops`` (arXiv 2203.15556, equation 4)."""
        params, tokens, _ = best_allocation(self.row, flops, SIX_PER_PARAMETER)
        return float(params), float(tokens)

    @property
    def row(self) -> Vector:
        """(5,): E, A, B, alpha, beta, as a row of ``samples``."""
        return np.array([getattr(self, name) for name in _PARAMETERS])


@one_blas_thread
def fit_parametric(
    params: ArrayLike, tokens: ArrayLike, loss: ArrayLike, *, delta: float = 1e-3, bootstrap: int = 0, seed: int = 0
) -> ParametricFit:
    """Fit the law to runs.

    Args:
        params: (runs,) parameters of each run's model.
        tokens: (runs,) training tokens.
        loss: (runs,) final losses, nats per token.
        delta: where the Huber loss on log L turns from square to straight.
        bootstrap: resamples of the runs for 95 % intervals, 20 or more; 0 for none.
        seed: of the resampling; fits of equally many runs and one seed draw the same of them, so that the rows of two
            backends' ``samples`` belong together when their runs are listed in the same order.

    Raises:
        UserError: runs that do not fix the law's five parameters: fewer than 5 distinct points, 3 sizes or 3 numbers of
            tokens; all on one line, as D = 20 N is; a Jacobian that lacks the rank; E, A or B at 0, an exponent below.
            Fewer than 8 distinct points when intervals are asked for. A value that is not positive and finite.
    """
    points = take_points(params, tokens, loss)
    require_enough(points)
    require_plane(points)
    if bootstrap:
        require_spread(points)
    objective, minimum = search(points, delta)
    require_identified(minimum, [points], ONE_LAW)
    fit = ParametricFit(*natural(minimum), objective=objective)
    if not bootstrap:
        return fit
    return with_intervals(fit, resampled_minima(minimum, [points], ONE_LAW, delta, bootstrap, seed))


def with_intervals(fit: ParametricFit, minima: Vector) -> ParametricFit:
    """The fit with the resampled ``minima`` (bootstrap, 5) in columns alpha, beta, e, a, b, and their intervals."""
    samples = np.stack(natural(minima.T), axis=-1)
    # Where a resample puts E at its bound the descent stops at some tiny number, which means 0.
    samples[samples[:, 0] < _NO_FLOOR, 0] = 0
    intervals = {name: percentile_interval(samples[:, i]) for i, name in enumerate(_PARAMETERS)}
    return dataclasses.replace(fit, intervals=intervals, samples=samples)


def natural(point: Vector) -> tuple[Any, Any, Any, Any, Any]:
    """E, A, B, alpha, beta of (alpha, beta, e, a, b)."""
    alpha, beta, e, a, b = point
    return np.exp(e), np.exp(a), np.exp(b), alpha, beta
