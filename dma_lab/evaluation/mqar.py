"""Recall: how often the value of a key is answered right, by the number of pairs and by the gap to the query."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dma_lab.evaluation.perplexity import ValidationScore
from dma_lab.files import whole

RECALL_FILE = "recall.npz"


@dataclass(frozen=True)
class RecallScore:
    """Counts of queries; an answer is the likeliest of all tokens."""

    pairs: NDArray[np.int64]
    """(P,): the numbers of pairs that were asked for, ascending."""
    correct: NDArray[np.int64]
    """(P, length): right answers by number of pairs and by gap, in tokens from a key's binding to its query."""
    total: NDArray[np.int64]
    """(P, length): queries."""
    nats: ValidationScore
    """The loss, an example being a document, so that runs are paired by example; its bytes are 0."""

    @property
    def accuracy(self) -> float:
        return float(self.correct.sum() / self.total.sum())

    @property
    def accuracy_by_pairs(self) -> dict[str, float]:
        """By number of pairs."""
        shares = self.correct.sum(1) / self.total.sum(1)
        return {str(pairs): float(share) for pairs, share in zip(self.pairs, shares, strict=True)}

    @property
    def accuracy_by_gap(self) -> dict[str, float]:
        """By octave of the gap: ``"5-8"`` is 5 to 8 tokens. Octaves without a query are left out."""
        correct, total = self.correct.sum(0), self.total.sum(0)
        shares = {}
        low, high = 0, 2
        while low < len(total) - 1:
            octave = slice(low + 1, high + 1)
            if total[octave].sum():
                shares[f"{low + 1}-{high}"] = float(correct[octave].sum() / total[octave].sum())
            low, high = high, 2 * high
        return shares

    def metrics(self) -> dict[str, Any]:
        """Loss and perplexity over the queries, and accuracy: all, by pairs, by gap."""
        return {
            "val_loss": self.nats.loss,
            "val_perplexity": self.nats.perplexity,
            "val_accuracy": self.accuracy,
            "val_accuracy_by_pairs": self.accuracy_by_pairs,
            "val_accuracy_by_gap": self.accuracy_by_gap,
        }

    def save(self, path: Path) -> None:
        """Write the losses to ``path`` (.npz, as of text), and ``pairs``, ``correct``, ``total`` beside it."""
        self.nats.save(path)
        with whole(path.with_name(RECALL_FILE)) as stream:
            np.savez(stream, pairs=self.pairs, correct=self.correct, total=self.total)


@torch.no_grad()
def score_recall(model: nn.Module, batches: Iterable[dict[str, Tensor]], *, device: torch.device) -> RecallScore:
    """Score every query of ``batches`` (``dma_lab.data.mqar.recall_validation``); ``model`` maps tokens to logits."""
    columns: dict[str, list[Tensor]] = {name: [] for name in ("nats", "right", "gaps", "pairs")}
    was_training = model.training
    model.eval()
    for batch in batches:
        asked = batch["gaps"] > 0
        values = batch["targets"][asked]
        logits = model(batch["tokens"].to(device))[asked.to(device)].float().cpu()
        nats = F.cross_entropy(logits, values, reduction="none").double()
        columns["nats"].append(torch.zeros(asked.shape, dtype=nats.dtype).masked_scatter(asked, nats))
        columns["right"].append(torch.zeros_like(asked).masked_scatter(asked, logits.argmax(-1) == values))
        columns["gaps"].append(batch["gaps"])
        columns["pairs"].append(batch["pairs"])
    model.train(was_training)
    nats_en, right_en, gaps_en, pairs_e = (torch.cat(columns[name]).numpy() for name in columns)
    asked_en = gaps_en > 0
    pairs, length = np.unique(pairs_e), gaps_en.shape[1]
    total, correct = (
        np.stack([np.bincount(gaps_en[pairs_e == n][counted[pairs_e == n]], minlength=length) for n in pairs])
        for counted in (asked_en, asked_en & right_en)
    )
    return RecallScore(
        pairs=pairs,
        correct=correct,
        total=total,
        nats=ValidationScore(
            document_nats=nats_en.sum(1),
            document_tokens=asked_en.sum(1),
            document_bytes=np.zeros(len(pairs_e), dtype=np.int64),
            position_nats=nats_en.sum(0),
            position_tokens=asked_en.sum(0),
            document_end_nats=np.zeros(len(pairs_e)),
        ),
    )
