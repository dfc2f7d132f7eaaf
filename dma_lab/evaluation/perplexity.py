"""Loss on a fixed set of validation tokens, kept as sums per document and a position so that runs can be paired."""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dma_lab.evaluation.splits import LossSplits, SplitSums
from dma_lab.files import whole
from dma_lab.model import Transformer

_LARGEST_LOG = math.log(sys.float_info.max)


@dataclass(frozen=True)
class ValidationScore:
    """Sums over the scored tokens. The EOT that ends a document is scored too, and stands for no bytes.

    Bits per byte are given with and without its nats: with, they are the code length of documents that say where they
    end; without, that of the text alone. The shorter the documents, the further the two are apart.
    """

    document_nats: NDArray[np.float64]
    """(documents,)"""
    document_tokens: NDArray[np.int64]
    document_bytes: NDArray[np.int64]
    position_nats: NDArray[np.float64]
    """(context,): by the target's position in its window; of ``score_sliding``, by the tokens it is predicted from."""
    position_tokens: NDArray[np.int64]
    document_end_nats: NDArray[np.float64]
    """(documents,): the part of ``document_nats`` that is the EOT's at the document's end."""
    splits: LossSplits | None = None
    """By repeated bigrams and by what a target is predicted from; of the validation that a run ends with."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.document_nats.sum() / self.document_tokens.sum())

    @property
    def perplexity(self) -> float:
        """Infinite where it exceeds a double, from 709.8 nats on."""
        return math.exp(self.loss) if self.loss <= _LARGEST_LOG or math.isnan(self.loss) else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Of the text and of where its documents end. Does not depend on the tokenizer.

        None of tokens that stand for no bytes: their tokenizer loses text.
        """
        return self._per_byte(float(self.document_nats.sum()))

    @property
    def text_bits_per_byte(self) -> float | None:
        """Of the text alone, without the EOTs' nats; else as ``bits_per_byte``."""
        return self._per_byte(float(self.document_nats.sum() - self.document_end_nats.sum()))

    def metrics(self) -> dict[str, float]:
        """The figures there are, by the names under which a run reports them."""
        figures = {
            "val_loss": self.loss,
            "val_perplexity": self.perplexity,
            "val_bits_per_byte": self.bits_per_byte,
            "val_text_bits_per_byte": self.text_bits_per_byte,
        }
        return {name: figure for name, figure in figures.items() if figure is not None}

    def _per_byte(self, nats: float) -> float | None:
        held = int(self.document_bytes.sum())
        return nats / math.log(2) / held if held else None

    def save(self, path: Path) -> None:
        """Write the arrays to ``path`` (.npz)."""
        with whole(path) as stream:
            arrays = {name: array for name, array in vars(self).items() if name != "splits"}
            np.savez(stream, **arrays, **({} if self.splits is None else vars(self.splits)))


@torch.no_grad()
def score_validation(
    model: Transformer,
    batches: Iterable[dict[str, Tensor]],
    *,
    n_documents: int,
    mask_documents: bool,
    device: torch.device,
) -> ValidationScore:
    """Score every target of ``batches`` (``dma_lab.data.batches.validation_batches``); targets of -100 are skipped."""
    document_nats, document_end_nats = torch.zeros(2, n_documents, dtype=torch.float64, device=device)
    document_tokens, document_bytes = torch.zeros(2, n_documents, dtype=torch.int64, device=device)
    by_position: Tensor | None = None
    splits = SplitSums(n_documents, model.shape.max_seq_len, model.shape.vocab_size, device)
    was_training = model.training
    model.eval()
    for batch in batches:
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        targets = batch["targets"]
        documents_bn = batch["document_ids"] if mask_documents else None
        nats = model.nats(batch["tokens"], targets, documents_bn).double().flatten()
        scored = (targets != -100).flatten()
        documents = batch["target_documents"].flatten()[scored]
        document_nats.index_add_(0, documents, nats[scored])
        target_bytes = batch["target_bytes"].flatten()[scored].long()
        document_end_nats.index_add_(0, documents, nats[scored] * batch["target_ends"].flatten()[scored])
        document_tokens.index_add_(0, documents, torch.ones_like(documents))
        document_bytes.index_add_(0, documents, target_bytes)
        sums = torch.stack((nats, scored.double())).view(2, *targets.shape).sum(1)
        by_position = sums if by_position is None else by_position + sums
        splits.add(batch, nats.view(targets.shape), targets != -100, mask_documents=mask_documents)
    model.train(was_training)
    assert by_position is not None, "no validation batch"
    return ValidationScore(
        document_nats=document_nats.cpu().numpy(),
        document_end_nats=document_end_nats.cpu().numpy(),
        document_tokens=document_tokens.cpu().numpy(),
        document_bytes=document_bytes.cpu().numpy(),
        position_nats=by_position[0].cpu().numpy(),
        position_tokens=by_position[1].long().cpu().numpy(),
        splits=splits.result(),
    )
