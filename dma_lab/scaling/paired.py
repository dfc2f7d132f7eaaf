"""Differences between two models that scored the same documents."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class PairedDifference:
    """Loss of one model minus that of another, nats a token, with its 95 % bootstrap interval."""

    difference: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


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
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=bootstrap)
    low, high = np.quantile((drawn @ difference) / (drawn @ counts), (0.025, 0.975))
    return PairedDifference(float(difference.sum() / counts.sum()), float(low), float(high))


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
