"""Differences between two models that scored the same documents."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dma_lab.scaling.documents import effective_number, mean_interval


@dataclass(frozen=True)
class PairedDifference:
    """Loss of one model minus that of another, nats per token."""

    difference: float
    interval: tuple[float, float] | None
    """95 %, over documents: of these two models, on other text of the kind. What other seeds would have given is not in
    it. None of fewer than 20 effective documents."""
    documents: int
    """That were scored."""
    effective_documents: float
    """How many documents of equal length would weigh as evenly."""
    nats: NDArray[np.float64] = field(repr=False, compare=False)
    """(documents,): the difference summed over each scored document's tokens."""
    tokens: NDArray[np.float64] = field(repr=False, compare=False)
    """(documents,)"""


def paired_difference(nats: ArrayLike, baseline_nats: ArrayLike, tokens: ArrayLike) -> PairedDifference:
    """Difference of mean loss over the same documents.

    What makes a document easy or hard moves both models alike and cancels, so the interval is far narrower than those
    of the two losses. Documents, not tokens, are its units: the tokens of a document are not independent.

    Args:
        nats: (documents,) summed loss of each document.
        baseline_nats: (documents,) the same of the model compared with.
        tokens: (documents,) scored tokens of each; documents without any are left out.

    Raises:
        ValueError: when the three differ in length or no token was scored.
    """
    ours, theirs, counts = (np.asarray(values, float) for values in (nats, baseline_nats, tokens))
    if not ours.shape == theirs.shape == counts.shape or ours.ndim != 1:
        raise ValueError(f"the models scored different documents: {ours.shape}, {theirs.shape}, {counts.shape}.")
    scored = counts > 0
    if not scored.any():
        raise ValueError("no document has a scored token.")
    difference, counts = (ours - theirs)[scored], counts[scored]
    mean, effective = float(difference.sum() / counts.sum()), effective_number(counts)
    return PairedDifference(mean, mean_interval(difference, counts), len(counts), effective, difference, counts)
