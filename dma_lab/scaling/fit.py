"""The parametric scaling law, L(N, D) = E + A / N^alpha + B / D^beta, fitted to runs.

Approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556, equations 2 to 4 and section D.2): minimise the sum over runs of
Huber_delta(log-sum-exp(a - alpha log N, b - beta log D, e) - log L) with a = log A, b = log B, e = log E, by L-BFGS
from a grid of starts; the best start wins. Besiroglu et al. 2024 (arXiv 2404.10102) redid it on the paper's own points.
"""

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import huber

from dma_lab.messages import UserError

# Section D.2: alpha, beta, e, a, b.
_GRID = (
    (0.0, 0.5, 1.0, 1.5, 2.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
    (-1.0, -0.5, 0.0, 0.5, 1.0),
    (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
)
_PARAMETERS = ("E", "A", "B", "alpha", "beta")
_FLOPS_PER_PARAMETER_TOKEN = 6
_EARLY = 25
_RESTARTS = 4


@dataclass(frozen=True)
class ParametricFit:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats a token; N parameters, D tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    objective: float
    """The sum of Huber losses at the minimum."""
    intervals: dict[str, tuple[float, float]] | None = None
    """95 % bootstrap percentile intervals of the five parameters."""
    samples: NDArray[np.float64] | None = dataclasses.field(default=None, repr=False)
    """(bootstrap, 5): the resampled fits, columns E, A, B, alpha, beta."""

    def predict(self, params: ArrayLike, tokens: ArrayLike) -> NDArray[np.float64]:
        """Loss of models of ``params`` parameters trained on ``tokens`` tokens."""
        params, tokens = np.asarray(params, float), np.asarray(tokens, float)
        return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta

    def optimal(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of least loss under 6 N D = ``flops`` (arXiv 2203.15556, equation 4)."""
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        params = ratio * (flops / _FLOPS_PER_PARAMETER_TOKEN) ** (self.beta / (self.alpha + self.beta))
        return params, flops / _FLOPS_PER_PARAMETER_TOKEN / params


def fit_parametric(
    params: ArrayLike, tokens: ArrayLike, loss: ArrayLike, *, delta: float = 1e-3, bootstrap: int = 0, seed: int = 0
) -> ParametricFit:
    """Fit the law to runs.

    Args:
        params: (runs,) parameters of each run's model.
        tokens: (runs,) training tokens.
        loss: (runs,) final losses, nats a token.
        delta: where the Huber loss on log L turns from square to straight.
        bootstrap: resamples of the runs for 95 % intervals; each is fitted from where the whole fit ended and from a
            few of the grid's descents.
        seed: of the resampling.

    Raises:
        UserError: with fewer runs than the law has parameters, or all of one size or one budget.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        log_n, log_d, log_l = (np.log(np.asarray(values, float)) for values in (params, tokens, loss))
    if not log_n.shape == log_d.shape == log_l.shape or log_n.ndim != 1:
        raise ValueError(f"params, tokens and loss differ in length: {log_n.shape}, {log_d.shape}, {log_l.shape}.")
    if not all(np.isfinite(values).all() for values in (log_n, log_d, log_l)):
        raise ValueError("params, tokens and loss must be positive and finite.")
    if len(log_l) < len(_PARAMETERS) or len(np.unique(log_n)) < 2 or len(np.unique(log_d)) < 2:
        raise UserError(
            f"{len(log_l)} runs of {len(np.unique(log_n))} sizes and {len(np.unique(log_d))} budgets cannot fix the "
            f"law's {len(_PARAMETERS)} parameters; give at least {len(_PARAMETERS)} runs, of 2 sizes and 2 budgets."
        )
    points = (log_n, log_d, log_l, delta)
    # Every start of the grid descends a little, and the tenth that came lowest to the end.
    early = [_descend(np.array(start), *points, iterations=_EARLY) for start in itertools.product(*_GRID)]
    early.sort(key=lambda found: found[0])
    minima = [_descend(point, *points) for _, point in early[: len(early) // 10]]
    minima.sort(key=lambda found: found[0])
    objective, best = minima[0]
    fit = ParametricFit(*_natural(best), objective=objective)
    if not bootstrap:
        return fit
    starts = [best, *(point for _, point in early[:: len(early) // _RESTARTS])]
    generator = np.random.default_rng(seed)
    samples = np.empty((bootstrap, len(_PARAMETERS)))
    for sample in samples:
        chosen = generator.integers(len(log_l), size=len(log_l))
        refits = [_descend(start, log_n[chosen], log_d[chosen], log_l[chosen], delta) for start in starts]
        sample[:] = _natural(min(refits, key=lambda found: found[0])[1])
    low, high = np.quantile(samples, (0.025, 0.975), axis=0)
    intervals = {name: (float(low[i]), float(high[i])) for i, name in enumerate(_PARAMETERS)}
    return dataclasses.replace(fit, intervals=intervals, samples=samples)


def _natural(point: NDArray[np.float64]) -> tuple[float, float, float, float, float]:
    alpha, beta, e, a, b = point
    return float(np.exp(e)), float(np.exp(a)), float(np.exp(b)), float(alpha), float(beta)


def _descend(
    start: NDArray[np.float64],
    log_n: NDArray[np.float64],
    log_d: NDArray[np.float64],
    log_l: NDArray[np.float64],
    delta: float,
    iterations: int = 1000,
) -> tuple[float, NDArray[np.float64]]:
    """L-BFGS from ``start`` (alpha, beta, e, a, b): the objective reached, and where."""
    # The objective is of order delta^2; in units of it the optimizer's tolerances mean what they say.
    unit = delta**2

    def value_and_gradient(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        alpha, beta, e, a, b = point
        terms = np.stack((a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)))
        top = terms.max(axis=0)
        exponentials = np.exp(terms - top)
        total = exponentials.sum(axis=0)
        residual = top + np.log(total) - log_l
        share_n, share_d, share_e = exponentials / total * np.clip(residual, -delta, delta)
        gradient = np.array((-(share_n @ log_n), -(share_d @ log_d), share_e.sum(), share_n.sum(), share_d.sum()))
        return float(huber(delta, residual).sum() / unit), gradient / unit

    found = minimize(
        value_and_gradient,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "ftol": 1e-12, "gtol": 1e-8},
    )
    return float(found.fun * unit), found.x
