"""Which targets a validation loss is split by: what a mean over all tokens hides.

A target repeats a bigram when it and the token before it stood side by side earlier in its document, within the window
that it is predicted from: what a model can recall and need not know, as Zoology splits perplexity (Arora et al., arXiv
2312.04927, "AR hits"; there only bigrams that are rare in training count, here all do). How rare a bigram is, the
number of scored documents that hold it says, the same for every model. One of a single document can hardly have been
learned; one of many is known without the context. Bands are powers of two of the tokens that a target is predicted
from: 1, 2 to 3, 4 to 7, ….
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dma_lab.kernels import document_bounds

RARITIES = ("1", "2 to 3", "4 to 7", "8 to 15", "16 or more")
"""Scored documents that a bigram stands in: powers of two, as the last dimension of ``repeat_nats`` has them."""


@dataclass(frozen=True)
class LossSplits:
    """Sums per document and band, up to the last scored document; the last dimension separates targets that repeat a
    bigram (index 1) from all others (index 0).
    """

    split_nats: NDArray[np.float64]
    """(documents, bands, 2)"""
    split_tokens: NDArray[np.int64]
    repeat_nats: NDArray[np.float64]
    """(documents, len(RARITIES)): of targets that repeat a bigram, by how many scored documents it stands in."""
    repeat_tokens: NDArray[np.int64]


class SplitSums:
    """``LossSplits`` in the making."""

    def __init__(self, n_documents: int, context: int, vocabulary: int, device: torch.device) -> None:
        bands = context.bit_length()
        self._shape, self._vocabulary = (n_documents, bands, 2), vocabulary
        self._edges = 2 ** torch.arange(bands, device=device)
        self._nats = torch.zeros(2 * n_documents * bands, dtype=torch.float64, device=device)
        self._tokens = torch.zeros(2 * n_documents * bands, dtype=torch.int64, device=device)
        self._targets: list[tuple[Tensor, ...]] = []
        """Of every batch the scored targets' bigrams, documents, whether they repeat one, and nats."""

    def add(self, batch: dict[str, Tensor], nats_bn: Tensor, scored_bn: Tensor, *, mask_documents: bool) -> None:
        """A batch of ``validation_batches``, its targets' nats (B, N), and which of them count."""
        seen_bn = tokens_seen(batch["tokens"], batch["document_ids"] if mask_documents else None)
        band_bn = torch.bucketize(seen_bn, self._edges, right=True) - 1
        repeats_bn = repeats_bigram(batch["tokens"], batch["targets"], batch["document_ids"], self._vocabulary)
        bigram_bn = batch["tokens"].long() * self._vocabulary + batch["targets"]
        kept = bigram_bn, batch["target_documents"], repeats_bn, nats_bn.double()
        self._targets.append(tuple(values_bn[scored_bn].cpu() for values_bn in kept))
        index_bn = (batch["target_documents"] * self._shape[1] + band_bn) * 2 + repeats_bn
        index = index_bn[scored_bn]
        self._nats.index_add_(0, index, nats_bn[scored_bn].double())
        self._tokens.index_add_(0, index, torch.ones_like(index))

    def result(self) -> LossSplits:
        nats, tokens = (sums.view(self._shape).cpu().numpy() for sums in (self._nats, self._tokens))
        scored = np.flatnonzero(tokens.sum((1, 2)))
        end = int(scored[-1]) + 1 if len(scored) else 0
        return LossSplits(nats[:end], tokens[:end], *self._by_rarity(end))

    def _by_rarity(self, n_documents: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        shape = n_documents, len(RARITIES)
        if not self._targets:
            return np.zeros(shape), np.zeros(shape, dtype=np.int64)
        bigram, document, repeats, nats = (torch.cat(own).numpy() for own in zip(*self._targets, strict=True))
        number = np.unique(bigram, return_inverse=True)[1]
        stands_in = np.bincount(np.unique(number * n_documents + document) // n_documents)
        rarity = np.minimum(np.log2(stands_in[number]).astype(np.int64), len(RARITIES) - 1)
        index = (document * len(RARITIES) + rarity)[repeats]
        length = n_documents * len(RARITIES)
        by_nats = np.bincount(index, weights=nats[repeats], minlength=length).astype(np.float64)
        by_tokens = np.bincount(index, minlength=length).astype(np.int64)
        return by_nats.reshape(shape), by_tokens.reshape(shape)


def tokens_seen(tokens_bn: Tensor, document_ids_bn: Tensor | None) -> Tensor:
    """How many tokens each target (B, N) is predicted from, 1 or more: those of its document alone, given its ids."""
    B, N = tokens_bn.shape
    start_bn, _ = document_bounds(document_ids_bn, B, N, tokens_bn.device)
    return torch.arange(1, N + 1, device=tokens_bn.device) - start_bn


def repeats_bigram(tokens_bn: Tensor, targets_bn: Tensor, document_ids_bn: Tensor, vocabulary: int) -> Tensor:
    """Bool (B, N): whether an earlier place of the same row and document has the same token and target."""
    bigram_bn = (document_ids_bn.long() * vocabulary + tokens_bn) * vocabulary + targets_bn.clamp(min=0)
    # Of equal bigrams side by side, in order of place, all but the first repeat it.
    ordered_bn, place_bn = bigram_bn.sort(dim=1, stable=True)
    again_bn = torch.zeros_like(ordered_bn, dtype=torch.bool)
    again_bn[:, 1:] = ordered_bn[:, 1:] == ordered_bn[:, :-1]
    return torch.zeros_like(again_bn).scatter_(1, place_bn, again_bn)
