"""Matching: the feed-forward width at which a backend costs what the MHA rung costs."""

from dma_lab.messages import UserError

# Widths that matrix units like are tried first.
_MULTIPLES = (64, 32, 16, 8, 4, 2, 1)


def match_width(fixed: int, per_width: int, target: int, *, start: int, kind: str, tolerance: float = 0.005) -> int:
    """The feed-forward width at which a model costs ``target``. What it costs is a straight line in that width.

    Args:
        fixed: what it costs beside the feed-forward layers.
        per_width: what they cost per unit of width.
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

    def cost(width: int) -> int:
        return fixed + per_width * width

    def difference(width: int) -> float:
        return abs(cost(width) / target - 1)

    if cost(start) == target:
        return start
    exact = (target - fixed) / per_width
    candidates = [max(1, multiple * round(exact / multiple)) for multiple in _MULTIPLES]
    for width in candidates:
        if difference(width) <= tolerance / 10:
            return width
    closest = min(candidates, key=difference)
    if difference(closest) > tolerance:
        raise UserError(
            f"this backend cannot be matched to the MHA rung: at the feed-forward width that comes closest, {closest}, "
            f"it has {cost(closest):,} {kind} and the rung has {target:,}; choose another rung, other options of the "
            "attention, or match=none."
        )
    return closest
