"""Laws of several backends fitted at once, sharing what the backends have in common.

The loss that no model of the text can go below, E, is the text's: backends trained on one corpus can differ in all but
that. Whether their exponents differ decides whether a lead grows with compute. Sharing what is shared leaves fewer
unknowns for the same runs: narrower intervals of the rest, and laws where one backend alone has too few runs.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dma_lab.messages import UserError
from dma_lab.scaling.fit import ParametricFit, natural, with_intervals
from dma_lab.scaling.identification import (
    NAMES,
    distinct,
    require_enough,
    require_identified,
    require_plane,
    require_spread,
)
from dma_lab.scaling.objective import (
    ONE_LAW,
    Points,
    Vector,
    descend,
    one_blas_thread,
    resampled_minima,
    take_points,
    values_at,
)
from dma_lab.scaling.search import search


@dataclass(frozen=True)
class JointFit:
    """The law of every backend; shared parameters are equal in all, in every resample too."""

    laws: dict[str, ParametricFit]
    """With the ``objective`` of the backend's own runs."""
    shared: frozenset[str]

    @property
    def objective(self) -> float:
        """Sum over all backends: what was minimised."""
        return sum(law.objective for law in self.laws.values())


@one_blas_thread
def fit_joint(
    runs: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    shared: Collection[str] = ("E",),
    *,
    delta: float = 1e-3,
    bootstrap: int = 0,
    seed: int = 0,
) -> JointFit:
    """Fit the laws of two or more backends, minimising the sum of their objectives.

    Args:
        runs: by backend, parameters, tokens and losses (nats per token), (runs,) each. Backends of equally many runs
            are resampled alike: list runs on the same data in the same order.
        shared: of ``E A B alpha beta``, what all backends have in common.
        delta: where the Huber loss on log L turns from square to straight.
        bootstrap: resamples of the runs for 95 % intervals.
        seed: of the resampling.

    Raises:
        UserError: fewer than two backends, or runs that do not fix their laws' parameters, as of ``fit_parametric``;
            what is shared, the other backends' runs help to fix.
        ValueError: ``shared`` names what is no parameter of the law.
    """
    if unknown := set(shared) - set(NAMES):
        raise ValueError(f"shared={sorted(unknown)}: a law has the parameters E, A, B, alpha, beta.")
    if len(runs) < 2:
        raise UserError(
            f"a joint fit shares parameters between backends and has runs of {len(runs)}; give at least 2 backends."
        )
    groups = [take_points(*own) for own in runs.values()]
    for points in groups:
        require_enough(points, unknowns=5 - len(set(shared)))
        if set(shared) <= {"E"}:
            require_plane(points)
        if bootstrap:
            require_spread(points)
    pooled = Points(*(np.concatenate([getattr(points, name) for points in groups]) for name in vars(groups[0])))
    slots = _slots(len(groups), shared)
    points_in_all, unknowns = sum(map(distinct, groups)), int(slots.max()) + 1
    if points_in_all < unknowns:
        raise UserError(
            f"{points_in_all} distinct points of {len(groups)} backends cannot fix the {unknowns} parameters of their "
            f"laws; run at least {unknowns}."
        )
    _, common = search(pooled, delta)
    # Backends are near each other: every law descends from the one through all runs together, or from where its own
    # runs lead from there, with the shared parameters of each backend in turn.
    own = [descend(common, [points], ONE_LAW, delta)[1] for points in groups]
    starts = [_joined([common] * len(groups), slots), *(_joined(own, slots, first) for first in range(len(own)))]
    minima = [descend(start, groups, slots, delta) for start in starts]
    minimum = min(minima, key=lambda found: found[0])[1]
    require_identified(minimum, groups, slots)
    drawn = resampled_minima(minimum, groups, slots, delta, bootstrap, seed) if bootstrap else None
    laws = {}
    for backend, points, slot in zip(runs, groups, slots, strict=True):
        objective = float(values_at(minimum[slot][None], points, delta)[0])
        law = ParametricFit(*natural(minimum[slot]), objective=objective)
        laws[backend] = law if drawn is None else with_intervals(law, drawn[:, slot])
    return JointFit(laws, frozenset(shared))


def _slots(backends: int, shared: Collection[str]) -> NDArray[np.intp]:
    """(backends, 5): unknowns 0 to 4 are the first backend's parameters; the others add what they do not share."""
    slots = np.tile(np.arange(5), (backends, 1))
    own = [index for index, name in enumerate(NAMES) if name not in shared]
    slots[1:, own] = 5 + np.arange((backends - 1) * len(own)).reshape(backends - 1, len(own))
    return slots


def _joined(laws: list[Vector], slots: NDArray[np.intp], first: int = 0) -> Vector:
    """One vector of unknowns from a law (5,) a backend; what is shared is that of the backend ``first``."""
    unknowns = np.empty(slots.max() + 1)
    for index in (*range(len(laws)), first):
        unknowns[slots[index]] = laws[index]
    return unknowns
