"""A mean over documents of unequal length, and how far other documents of the kind would have moved it."""

import numpy as np
from numpy.typing import NDArray
from scipy import special

Vector = NDArray[np.float64]
LEAST_DOCUMENTS = 20
"""Effective ones, below which a spread over documents says less about other documents than about these few."""


def effective_number(tokens: Vector) -> float:
    """(Σw)² / Σw² over documents' tokens w: how many of equal length would weigh as evenly (Kish 1965)."""
    return float(tokens.sum() ** 2 / (tokens**2).sum())


def freedom(tokens: Vector) -> float:
    """Degrees of freedom of the variance over documents whose means are equally uncertain (Satterthwaite 1946): fewer
    than their number by far where some are long, for these make the variance alone.
    """
    weights = tokens**2
    return float(weights.sum() ** 2 / (weights**2).sum()) - 1


def mean_variance(nats: Vector, tokens: Vector) -> Vector:
    """Variance (...) of the means Σ nats / Σ tokens over documents, by the jackknife.

    Leaving out one document at a time sees that a long one moves the mean by more than its share of the spread.

    Args:
        nats: (..., documents), summed over each document's tokens.
        tokens: (documents,), all above 0.
    """
    count = len(tokens)
    left = (nats.sum(axis=-1, keepdims=True) - nats) / (tokens.sum() - tokens)
    return np.asarray((count - 1) * left.var(axis=-1))


def mean_interval(nats: Vector, tokens: Vector) -> tuple[float, float] | None:
    """95 % interval of Σ nats / Σ tokens over documents (documents,): Student's t by the jackknife's variance, with the
    skewness of documents taken out by Hall's transformation (1992, J. R. Statist. Soc. B 54, 221).

    None of fewer than ``LEAST_DOCUMENTS`` effective documents.
    """
    if effective_number(tokens) < LEAST_DOCUMENTS:
        return None
    mean = nats.sum() / tokens.sum()
    error = float(np.sqrt(mean_variance(nats, tokens)))
    reach = float(special.stdtrit(freedom(tokens), 0.975))
    off = nats - mean * tokens
    squares = float(off @ off)
    skew = float((off**3).sum() / squares**1.5) if squares else 0.0
    low, high = (_untransformed(value, skew) for value in (reach, -reach))
    return float(mean - error * low), float(mean - error * high)


def _untransformed(value: float, skew: float) -> float:
    """The t of which Hall's cubic, t + skew t² / 3 + skew² t³ / 27 + skew / 6, is ``value``."""
    if abs(skew) < 1e-6:
        return value
    return float(3 / skew * (np.cbrt(1 + skew * (value - skew / 6)) - 1))
