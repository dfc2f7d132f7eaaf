"""The least loss that compute can buy under a parametric law, and the compute that a loss takes.

At cost C = k N^p D the law E + A / N^alpha + B / D^beta has its minimum where alpha A / N^alpha = p beta B / D^beta
(arXiv 2203.15556, equation 4, is the case p = 1, k = 6). A Cost is such a power law in every segment, so the minimum
over all sizes is the lowest of the segments' own.

Laws are rows (..., 5) of E, A, B, alpha, beta: one law, or all resamples of one at once.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dma_lab.scaling.cost import Cost

Vector = NDArray[np.float64]
_LOG_FLOPS = np.log(1e-10), np.log(1e60)
"""No training lies outside; a loss that takes more is not reached."""


def law_loss(laws: Vector, log_params: ArrayLike, log_tokens: ArrayLike) -> Vector:
    """Loss of every law, nats per token. In logarithms: an A beyond all floats may be made small again by its alpha."""
    E, A, B, alpha, beta = np.moveaxis(laws, -1, 0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        values: Vector = E + np.exp(np.log(A) - alpha * log_params) + np.exp(np.log(B) - beta * log_tokens)
        return values


def best_allocation(laws: Vector, flops: ArrayLike, cost: Cost) -> tuple[Vector, Vector, Vector]:
    """Parameters, tokens and loss of least loss at ``flops``, of every law (...,).

    NaN where there is none: a law whose loss does not fall with both, parameters and tokens.
    """
    E, A, B, alpha, beta = np.moveaxis(np.asarray(laws, float), -1, 0)
    log_c = np.broadcast_to(np.log(np.asarray(flops, float)), E.shape)
    best = np.full((3, *E.shape), np.nan)
    falls = _falls(np.asarray(laws, float))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.log(alpha) + np.log(A) - np.log(beta) - np.log(B)
        for low, high, k, p in cost.segments:
            log_n = np.clip((ratio - np.log(p) + beta * (log_c - k)) / (alpha + p * beta), low, high)
            log_d = log_c - k - p * log_n
            loss = law_loss(np.asarray(laws, float), log_n, log_d)
            better = falls & np.isfinite(loss) & ~(loss >= best[2])
            best = np.where(better, (log_n, log_d, loss), best)
        return np.exp(best[0]), np.exp(best[1]), best[2]


def compute_for_loss(laws: Vector, loss: ArrayLike, cost: Cost) -> Vector:
    """FLOP at which the best allocation of every law reaches ``loss`` (...,).

    Infinite where the law never comes so low (its E is no lower), NaN where law or loss are none. By bisection of the
    logarithm: the least loss falls as compute grows.
    """
    laws, target = np.asarray(laws, float), np.asarray(loss, float)
    low, high = (np.full(laws.shape[:-1], end) for end in _LOG_FLOPS)
    for _ in range(64):
        middle = (low + high) / 2
        reached = best_allocation(laws, np.exp(middle), cost)[2] <= target
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    found = np.where(high < _LOG_FLOPS[1], np.exp(high), np.inf)
    return np.where(_falls(laws) & np.isfinite(target), found, np.nan)


def _falls(laws: Vector) -> NDArray[np.bool_]:
    """Whether the loss of each law falls with parameters and with tokens."""
    return np.asarray(np.isfinite(laws).all(axis=-1) & (laws[..., 1:] > 0).all(axis=-1))
