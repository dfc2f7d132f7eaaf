"""Differences between two models that scored the same documents."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST_DOCUMENTS = 20
"""Effective ones, below which a bootstrap says less about other documents than about these few."""


@dataclass(frozen=True)
class PairedDifference:
    """Loss of one model minus that of another, nats a token."""

    difference: float
    interval: tuple[float, float] | None
    """95 % bootstrap interval over documents: of these two trainings, on other text. What other seeds would have given
    is not in it. None of fewer than ``LEAST_DOCUMENTS`` effective documents."""
    documents: int
    """That were scored."""
    effective_documents: float
    """(Σw)² / Σw² over their tokens w: how many documents of equal length would weigh as evenly (Kish 1965)."""


def paired_difference(
    nats: ArrayLike, baseline_nats: ArrayLike, tokens: ArrayLike, *, bootstrap: int = 10_000, seed: int = 0
) -> PairedDifference:
    """Difference of mean loss over the same documents, which are resampled together for the interval.

    What makes a document easy or hard moves both models alike and cancels, so the interval is far narrower than those
    of the two losses. Documents, not tokens, are resampled: the tokens of a document are not independent.

    Args:
        nats: (documents,) summed loss of each document.
        baseline_nats: (documents,) the same of the model compared with.
        tokens: (documents,) scored tokens of each; documents without any are left out.
        bootstrap: resamples.
        seed: of the resampling.

    Raises:
        ValueError: when the three differ in length or no token was scored.
    """
    difference, counts = _scored(nats, baseline_nats, tokens)
    effective = float(counts.sum() ** 2 / (counts**2).sum())
    interval = None
    if effective >= LEAST_DOCUMENTS:
        generator = np.random.default_rng(seed)
        drawn = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=bootstrap)
        low, high = np.quantile((drawn @ difference) / (drawn @ counts), (0.025, 0.975))
        interval = float(low), float(high)
    return PairedDifference(float(difference.sum() / counts.sum()), interval, len(counts), effective)


def _scored(
    nats: ArrayLike, baseline_nats: ArrayLike, tokens: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ours, theirs, counts = (np.asarray(values, float) for values in (nats, baseline_nats, tokens))
    if not ours.shape == theirs.shape == counts.shape or ours.ndim != 1:
        raise ValueError(f"the models scored different documents: {ours.shape}, {theirs.shape}, {counts.shape}.")
    scored = counts > 0
    if not scored.any():
        raise ValueError("no document has a scored token.")
    return (ours - theirs)[scored], counts[scored]
