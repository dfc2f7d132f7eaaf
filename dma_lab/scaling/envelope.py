"""Approach 1 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.1): the envelope of training curves.

At every compute the lowest of all sizes' curves is the best that was found; how its size and tokens grow with compute
gives N* ∝ C^a and D* ∝ C^b.

Two things differ from the paper. A curve is better made of runs that each ended where they are scored (of several
budgets, or branches of one run) than of the losses on the way of a single one: before its decay a run stands above
what one of that budget would have reached, and the more so the earlier. And the power laws go through the compute at
which one size hands over to the next, with the geometric mean of both sizes, in place of every point of the envelope:
the envelope's size is a staircase, the regression through k whole stairs has a slope too small by 1 / k² (a quarter
for two stairs), and the first and last stair, which belong to the smallest and largest size run, have no width of
their own. With many sizes the two agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dma_lab.messages import UserError
from dma_lab.scaling.interval import require_resamples
from dma_lab.scaling.objective import take_points
from dma_lab.scaling.power_law import PowerLaw, fit_power_law

Vector = NDArray[np.float64]
_COMPUTES = 1500
"""So many, evenly apart in logarithms, as in the paper."""


@dataclass(frozen=True)
class Curve:
    """Loss of one model along its training; between the points straight in log FLOP, beyond them unknown."""

    params: float
    flops: Vector
    """(points,), rising."""
    tokens: Vector
    """(points,)"""
    loss: Vector
    """(points,), nats per token. Noise that one run's curve has and another's has not picks the winner: smooth it."""


@dataclass(frozen=True)
class Envelope:
    """The lowest curve at every compute that any reaches, (computes,) each, and the laws through its handovers."""

    flops: Vector
    params: Vector
    tokens: Vector
    loss: Vector
    handovers: tuple[Vector, Vector, Vector]
    """FLOP, parameters and tokens where one size hands over to the next, (handovers,) each."""
    params_law: PowerLaw
    tokens_law: PowerLaw


def fit_envelope(curves: Sequence[Curve], *, bootstrap: int = 0, seed: int = 0) -> Envelope:
    """The envelope of ``curves``, several of one size allowed. Intervals resample the curves.

    Raises:
        UserError: fewer than two handovers, which takes three sizes that are each best at some compute; a loss that is
            not positive and finite; fewer than 20 resamples, where they are asked for.
        ValueError: a curve of fewer than two points, or whose FLOP do not rise.
    """
    for curve in curves:
        if len(curve.flops) < 2 or not (np.diff(curve.flops) > 0).all():
            raise ValueError(f"the curve of {curve.params:.3g} parameters needs 2 or more points of rising FLOP.")
        # A loss that is none would count as compute that the curve does not reach.
        take_points(np.full(len(curve.flops), curve.params), curve.tokens, curve.loss)
    if not curves:
        raise UserError("there is no training curve to take an envelope of.")
    log_c = np.log(np.geomspace(min(c.flops[0] for c in curves), max(c.flops[-1] for c in curves), _COMPUTES))
    params = np.array([curve.params for curve in curves])
    losses = np.stack([_along(curve, curve.loss, log_c) for curve in curves])
    log_d = np.stack([_along(curve, np.log(curve.tokens), log_c) for curve in curves])
    flops, sizes, tokens = found = _handovers(log_c, params, losses, log_d)
    if len(flops) < 2:
        raise UserError(
            f"the lowest curve changes size {len(flops)} times among {len(set(params))} sizes; power laws need 2 "
            "crossings: at least 3 sizes, each the best at some compute that its neighbours reach too."
        )
    if bootstrap:
        require_resamples(bootstrap)
    generator = np.random.default_rng(seed)
    chosen = [generator.integers(len(curves), size=len(curves)) for _ in range(bootstrap)]
    resampled = [_handovers(log_c, params[rows], losses[rows], log_d[rows]) for rows in chosen]
    reached = np.isfinite(losses).any(axis=0)
    winner = np.nanargmin(losses[:, reached], axis=0)
    return Envelope(
        np.exp(log_c[reached]),
        params[winner],
        np.exp(log_d[:, reached][winner, np.arange(len(winner))]),
        losses[:, reached][winner, np.arange(len(winner))],
        found,
        fit_power_law(flops, sizes, ((c, n) for c, n, _ in resampled)),
        fit_power_law(flops, tokens, ((c, d) for c, _, d in resampled)),
    )


def _along(curve: Curve, values: Vector, log_c: Vector) -> Vector:
    """The curve's ``values`` (points,) at ``log_c`` (computes,), NaN where it does not reach."""
    return np.interp(log_c, np.log(curve.flops), values, left=np.nan, right=np.nan)


def _handovers(log_c: Vector, params: Vector, losses: Vector, log_d: Vector) -> tuple[Vector, Vector, Vector]:
    """FLOP, parameters and tokens at which the best size changes between curves that both reach there.

    Where noise lets two sizes change places more than once, the mean of their crossings counts, once. Where a curve
    begins or ends below the others nothing was handed over: who would have been best beyond is not known.
    """
    known = np.isfinite(losses)
    winner = np.where(known, losses, np.inf).argmin(axis=0)
    crossings: dict[tuple[float, float], list[tuple[float, float]]] = {}
    for at in np.flatnonzero(winner[1:] != winner[:-1]):
        pair = winner[at : at + 2]
        if known[np.ix_(pair, (at, at + 1))].all() and params[pair[0]] != params[pair[1]]:
            crossing = log_c[at : at + 2].mean(), log_d[np.ix_(pair, (at, at + 1))].mean()
            crossings.setdefault((params[pair].min(), params[pair].max()), []).append(crossing)
    means = np.array([np.mean(found, axis=0) for found in crossings.values()]).reshape(-1, 2)
    sizes = np.array(list(crossings), float).reshape(-1, 2)
    return np.exp(means[:, 0]), np.sqrt(sizes.prod(axis=1)), np.exp(means[:, 1])
