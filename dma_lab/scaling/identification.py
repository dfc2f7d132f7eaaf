"""Whether runs fix a law at all: five numbers come out of any fit, and say nothing where the problem lacks their rank.

Before a fit the plan of the runs is looked at, after it the Jacobian of the law at the minimum, one row per run.
"""

import numpy as np
from numpy.typing import NDArray

from dma_lab.messages import UserError
from dma_lab.scaling.objective import Points, Vector, residuals

NAMES = ("alpha", "beta", "E", "A", "B")
"""In the order of a backend's slots."""
LEAST_FOR_INTERVALS = 8
"""Distinct points. Resamples of fewer are mostly of so few that each is met exactly, and do not determine a spread."""
_ON_A_LINE = 0.1
"""Root mean square of the points' distances from a line in (log N, log D): tokens within 10 % of a power of size."""
_LARGEST_CONDITION = 1000.0
"""Of the Jacobian with columns of equal length. Grids, isoFLOP grids and a ladder with branches at 0.5, 1 and 2 have 20
to 80, a grid that spans a factor of 4 has 220; tokens at 20 per parameter, give or take 1 %, have 2,000."""
_LEAST_SHARE = 1e-3
"""Of the loss: a term that is nowhere larger is at its bound, 0."""


def distinct(points: Points) -> int:
    """How many points of size and tokens differ: runs that share one, seeds say, tell of noise, not of the law."""
    return len(np.unique(np.stack((points.log_n, points.log_d)), axis=1).T)


def require_enough(points: Points, unknowns: int = 5) -> None:
    """Refuse (UserError) runs too few to fix so many unknowns, or whose loss is one and the same."""
    runs, sizes, budgets = len(points.log_l), len(np.unique(points.log_n)), len(np.unique(points.log_d))
    if distinct(points) < unknowns or (unknowns == len(NAMES) and min(sizes, budgets) < 3):
        raise UserError(
            f"{runs} runs of {sizes} sizes and {budgets} numbers of tokens, {distinct(points)} distinct points, cannot "
            f"fix the law's {unknowns} parameters; run at least {unknowns} distinct points, of 3 sizes and 3 "
            "numbers of tokens."
        )
    if np.ptp(points.log_l) < 1e-9:
        raise UserError(
            f"all {runs} runs have the loss {np.exp(points.log_l[0]):.4g}, from which no law of size and tokens can be "
            "determined; run sizes and numbers of tokens that are further apart."
        )


def require_plane(points: Points) -> None:
    """Refuse (UserError) runs along one line of (log N, log D): there, tokens can stand for size and size for tokens.

    Along D = k N^p the law's terms can change places, A / N^alpha for B / D^beta, and every loss stays as it is.
    """
    centred = np.stack((points.log_n - points.log_n.mean(), points.log_d - points.log_d.mean()))
    directions, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    if lengths[1] / np.sqrt(len(points.log_l)) >= _ON_A_LINE:
        return
    slope = directions[1, 0] / directions[0, 0]
    ratio = np.exp((points.log_d - points.log_n).mean())
    line = f"D = {ratio:.3g} N" if abs(slope - 1) < 0.05 else f"D ∝ N^{slope:.2f}"
    raise UserError(
        f"the runs lie on one line, {line}, along which (A, alpha) and (B, beta) can be exchanged: size and tokens "
        "cannot be told apart; run every size at several numbers of tokens, as with schedule.branches=[0.5,1,2]."
    )


def require_spread(points: Points) -> None:
    """Refuse (UserError) to take intervals from too few distinct points."""
    if (found := distinct(points)) < LEAST_FOR_INTERVALS:
        raise UserError(
            f"{found} distinct points of size and tokens do not determine a spread, and intervals need at least "
            f"{LEAST_FOR_INTERVALS}; run more of them, or fit without intervals."
        )


def require_identified(
    minimum: Vector, groups: list[Points], slots: NDArray[np.intp], *, floor_given: bool = False
) -> None:
    """Refuse (UserError) a minimum at a bound of the law, or at which the runs do not fix every parameter.

    ``floor_given``: E was not fitted, and the runs need fix the four others alone.
    """
    jacobian = np.zeros((sum(len(points.log_l) for points in groups), len(minimum)))
    names = [""] * len(minimum)
    row = 0
    for own, points in zip(slots, groups, strict=True):
        _require_inside(minimum[own], points, floor_given=floor_given)
        _, derivative = residuals(minimum[own], points)
        # A and B at the runs' middle, not at one parameter and one token: no column then follows another for no reason
        # but the distance.
        derivative[0] += derivative[3] * points.log_n.mean()
        derivative[1] += derivative[4] * points.log_d.mean()
        jacobian[row : row + len(points.log_l), own] = derivative.T
        row += len(points.log_l)
        for slot, name in zip(own, NAMES, strict=True):
            names[slot] = name
    if floor_given:
        kept = [i for i in range(len(minimum)) if i not in slots[:, NAMES.index("E")]]
        jacobian, names = jacobian[:, kept], [names[i] for i in kept]
    _, singular, directions = np.linalg.svd(jacobian / np.linalg.norm(jacobian, axis=0), full_matrices=False)
    if len(jacobian) >= len(names) and singular[-1] * _LARGEST_CONDITION >= singular[0]:
        return
    open_ = np.abs(directions[-1]) > 0.3
    which = ", ".join(dict.fromkeys(name for name, is_open in zip(names, open_, strict=True) if is_open))
    raise UserError(
        f"the runs do not fix {which} of the law: changed together they leave every loss as it is (condition "
        f"{singular[0] / max(singular[-1], 1e-300):.0e}, at most {_LARGEST_CONDITION:g}); run sizes and numbers of "
        "tokens that are further apart, at least 3 of each, every size at several."
    )


def _require_inside(point: Vector, points: Points, *, floor_given: bool) -> None:
    """The law's bounds: alpha and beta above 0, and each of its three terms."""
    alpha, beta, e, a, b = point
    for name, value, what in (("alpha", alpha, "sizes"), ("beta", beta, "numbers of tokens")):
        if value <= 0:
            raise UserError(
                f"the closest law has {name} = {value:.2g}, a loss that does not fall with {what}: these "
                f"runs follow no such law; run {what} further apart, or more seeds."
            )
    share_n, share_d = a - alpha * points.log_n - points.log_l, b - beta * points.log_d - points.log_l
    for name, share, what in (
        ("E", e - points.log_l, "the loss would end: run larger sizes on more tokens"),
        ("A", share_n, "size matters: run sizes further apart"),
        ("B", share_d, "tokens matter: run numbers of tokens further apart"),
    ):
        if share.max() < np.log(_LEAST_SHARE) and not (name == "E" and floor_given):
            raise UserError(
                f"the closest law has {name} at its bound, 0: these runs do not show where {what}, or more seeds."
            )
