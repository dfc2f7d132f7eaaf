"""What approach 3 minimises, and its descent: Huber losses of log-sum-exp residuals, with their analytic gradient.

Several backends' points may be fitted at once: ``slots`` says which entry of the vector of unknowns is a backend's
alpha, beta, e = log E, a = log A and b = log B, so that backends share what their slots share.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from dma_lab.messages import UserError
from dma_lab.scaling.interval import require_resamples

Vector = NDArray[np.float64]
_Fit = TypeVar("_Fit", bound=Callable[..., object])
one_blas_thread: Callable[[_Fit], _Fit] = threadpool_limits.wrap(limits=1, user_api="blas")
"""Decorator of a fit: its matrices have a few hundred entries, over which BLAS's threads spend their time meeting (four
times the work of one thread on two cores, and more on more)."""
ONE_LAW = np.arange(5)[None]
"""The slots of a single backend's alpha, beta, e, a, b."""


@dataclass(frozen=True)
class Points:
    """Runs of one backend: natural logarithms of parameters, tokens and loss, each (runs,)."""

    log_n: Vector
    log_d: Vector
    log_l: Vector

    def resampled(self, generator: np.random.Generator) -> "Points":
        """As many runs, drawn with replacement, and drawn again when the draw alone could fix no law.

        What could be fixed is asked of the plan (how many distinct points, sizes and numbers of tokens were drawn), not
        of the losses: points that two backends share are drawn alike for both.
        """
        _, point = np.unique(np.stack((self.log_n, self.log_d)), axis=1, return_inverse=True)
        for _ in range(1000):
            drawn = generator.integers(len(self.log_l), size=len(self.log_l))
            kept = ((point, 5), (self.log_n, 3), (self.log_d, 3))
            if all(len(np.unique(of[drawn])) >= min(least, len(np.unique(of))) for of, least in kept):
                break
        return Points(self.log_n[drawn], self.log_d[drawn], self.log_l[drawn])


def take_points(params: ArrayLike, tokens: ArrayLike, loss: ArrayLike) -> Points:
    """Check runs and take logarithms.

    Raises:
        UserError: a value that is not positive and finite, a diverged run's loss for one.
        ValueError: when the three differ in length.
    """
    columns = {"params": params, "tokens": tokens, "loss": loss}
    values = {name: np.asarray(column, float) for name, column in columns.items()}
    shapes = [column.shape for column in values.values()]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(f"params, tokens and loss differ in length: {', '.join(map(str, shapes))}.")
    for name, column in values.items():
        for run in np.flatnonzero(~(np.isfinite(column) & (column > 0)))[:1]:
            raise UserError(
                f"{name} of run {run} is {column[run]:g}, and a law is fitted to values that are positive and finite; "
                "leave out runs that diverged, and run them again."
            )
    return Points(*(np.log(column) for column in values.values()))


def residuals(point: Vector, points: Points) -> tuple[Vector, Vector]:
    """log L of the law minus that of the runs (runs,), and its derivative by alpha, beta, e, a, b (5, runs)."""
    alpha, beta, e, a, b = point
    terms = np.empty((3, len(points.log_l)))
    terms[0], terms[1], terms[2] = a - alpha * points.log_n, b - beta * points.log_d, e
    top = terms.max(axis=0)
    exponentials = np.exp(terms - top)
    total = exponentials.sum(axis=0)
    share_n, share_d, share_e = exponentials / total
    derivative = np.stack((-share_n * points.log_n, -share_d * points.log_d, share_e, share_n, share_d))
    return top + np.log(total) - points.log_l, derivative


def values_at(candidates: Vector, points: Points, delta: float) -> Vector:
    """The objective (candidates,) at each of ``candidates`` (candidates, 5)."""
    return np.array([_huber(residuals(candidate, points)[0], delta) for candidate in candidates])


def _huber(residual: Vector, delta: float) -> float:
    """Sum of r²/2 within delta and delta (|r| - delta/2) beyond; its derivative is r clipped to ± delta."""
    clipped = np.clip(residual, -delta, delta)
    return float(clipped @ (residual - clipped / 2))


def descend(
    start: Vector,
    groups: list[Points],
    slots: NDArray[np.intp],
    delta: float,
    *,
    scaling: Vector | None = None,
    iterations: int = 1000,
) -> tuple[float, Vector]:
    """L-BFGS from ``start``: the objective reached, and where.

    Args:
        start: (unknowns,).
        groups: the runs of each backend.
        slots: (backends, 5), the index of each backend's alpha, beta, e, a, b among the unknowns.
        delta: where the Huber loss turns from square to straight.
        scaling: (unknowns, unknowns); the descent moves in y where unknowns = start + scaling · y.
        iterations: at most so many.
    """
    # The objective is of order delta^2; in units of it the optimizer's tolerances mean what they say.
    unit = delta**2

    def value_and_gradient(moved: Vector) -> tuple[float, Vector]:
        point = moved if scaling is None else start + scaling @ moved
        value, gradient = 0.0, np.zeros(len(start))
        for own, points in zip(slots, groups, strict=True):
            residual, derivative = residuals(point[own], points)
            value += _huber(residual, delta)
            gradient[own] += derivative @ np.clip(residual, -delta, delta)
        return value / unit, (gradient if scaling is None else scaling.T @ gradient) / unit

    found = minimize(
        value_and_gradient,
        start if scaling is None else np.zeros(len(start)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "ftol": 1e-12, "gtol": 1e-8},
    )
    return float(found.fun * unit), found.x if scaling is None else start + scaling @ found.x


def resampled_minima(
    minimum: Vector, groups: list[Points], slots: NDArray[np.intp], delta: float, count: int, seed: int
) -> Vector:
    """The minima (count, unknowns) of ``count`` resamples of every group's runs, each descended to from ``minimum``.

    Groups of equally many runs draw alike, in one call or in several of the same seed: listed in the same order, runs
    that share their data stay together, and what the data did to both cancels in a difference.
    """
    require_resamples(count)
    scaling = curvature_scaling(minimum, groups, slots, delta)
    generators = [np.random.default_rng([seed, len(points.log_l)]) for points in groups]
    minima = np.empty((count, len(minimum)))
    for row in minima:
        drawn = [points.resampled(generator) for points, generator in zip(groups, generators, strict=True)]
        row[:] = descend(minimum, drawn, slots, delta, scaling=scaling)[1]
    return minima


def curvature_scaling(point: Vector, groups: list[Points], slots: NDArray[np.intp], delta: float) -> Vector:
    """Coordinates in which the objective is round near ``point``.

    The law's parameters trade against each other (alpha with A), a long valley that L-BFGS takes a hundred steps to
    learn. Its shape is known: the Gauss-Newton matrix, runs beyond delta weighted as the Huber loss does. A resample's
    valley is nearly that of the runs it is drawn from.
    """
    curvature = np.zeros((len(point), len(point)))
    for own, points in zip(slots, groups, strict=True):
        residual, derivative = residuals(point[own], points)
        weight = 1 / np.maximum(1, np.abs(residual) / delta)
        curvature[np.ix_(own, own)] += (derivative * weight) @ derivative.T / delta**2
    values, directions = np.linalg.eigh(curvature)
    # A direction that the runs leave open is not stretched without limit.
    scaled: Vector = directions / np.sqrt(np.maximum(values, 1e-8 * values[-1]))
    return scaled
