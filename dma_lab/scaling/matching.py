"""Matching: the feed-forward width at which a backend costs what the MHA rung costs."""

import functools
from collections.abc import Callable

from dma_lab.messages import UserError

# Widths that matrix units like are tried first.
_MULTIPLES = (64, 32, 16, 8, 4, 2, 1)


def match_width(count: Callable[[int], int], target: int, *, start: int, kind: str, tolerance: float = 0.005) -> int:
    """The width whose ``count`` agrees with ``target``.

    Args:
        count: cost of the model with a given feed-forward width; affine in it.
        target: the MHA rung's cost.
        start: the MHA rung's width; kept where it already agrees exactly.
        kind: what is counted, for the error.
        tolerance: largest relative difference.

    Returns:
        The multiple of the highest power of two up to 64 at which the two agree within a tenth of ``tolerance``, so
        that the choice is seldom felt; where there is none, the closest width.

    Raises:
        UserError: with both numbers, when no width of at least 1 agrees within ``tolerance``.
    """
    at_start = count(start)
    if at_start == target:
        return start
    slope = count(start + 1) - at_start
    exact = start + (target - at_start) / slope
    candidates = [max(1, multiple * round(exact / multiple)) for multiple in _MULTIPLES]

    @functools.cache  # counting builds a model
    def difference(width: int) -> float:
        return abs(count(width) / target - 1)

    for width in candidates:
        if difference(width) <= tolerance / 10:
            return width
    closest = min(candidates, key=difference)
    if difference(closest) > tolerance:
        raise UserError(
            f"this backend cannot be matched to the MHA rung: at the feed-forward width that comes closest, {closest}, "
            f"it has {count(closest):,} {kind} and the rung has {target:,}; choose another rung, other options of the "
            "attention, or match=none."
        )
    return closest
