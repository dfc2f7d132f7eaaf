"""How long DMA's keys live in a trained model, and what kind of memory each head became.

A key's *lifetime* is expiry_j - j: the number of queries that attend to it. A key is *observed* when its document
goes on for at least 1.5 W queries from it (W the window): only then can one see whether it outlives the window, so only
observed keys are counted. A key *survives* when it lives 1.5 W queries or longer. A head is, in this order,

- a *window* when at least 90 % of its observed keys live between 0.9 W and 1.1 W queries, as all would under SWA;
- a *long memory* when at least 10 % of its observed keys beyond the first 4 of their document survive (scores in
  random order do that too where documents end soon after: compare with ``surviving_by_chance``);
- a *sink* when at least 90 % of its observed keys among the first 4 of their document survive (and, not being a long
  memory, it keeps hardly any other);
- *mixed* otherwise: keys leave early, but not at one age.
"""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dma_lab.attention.dma import DynamicMaskAttention
from dma_lab.data.batches import validation_batches
from dma_lab.evaluation.checkpoint import open_run
from dma_lab.files import whole
from dma_lab.kernels import Documents, document_bounds
from dma_lab.messages import UserError
from dma_lab.model import Transformer
from dma_lab.run_summary import LIFETIMES

KINDS = ("window", "long memory", "sink", "mixed")
OBSERVED = 1.5
"""How far a key's document must reach beyond it, in windows."""
_TOKENS = 8192
"""Validation tokens that a run's lifetimes are measured on, or one sequence where that is longer."""
_BINS = 30
_FIRST = 4


@dataclass(frozen=True)
class Lifetimes:
    """Lifetimes of every key of a batch, B sequences of N tokens, in every layer (L) and key/value head (K)."""

    expiry: NDArray[np.int32]
    """(L, B, K, N), as ``prefix_topk_expiry`` gives it."""
    start: NDArray[np.int64]
    """(B, N): where each position's document starts in its sequence."""
    end: NDArray[np.int64]
    """(B, N): where it ends, exclusive."""
    window: int

    @property
    def lived(self) -> NDArray[np.int64]:
        """(L, B, K, N): queries that attend to each key."""
        return self.expiry.astype(np.int64) - np.arange(self.expiry.shape[-1])

    @property
    def observed(self) -> NDArray[np.bool_]:
        """(B, N)."""
        return self.end - np.arange(self.end.shape[1]) >= OBSERVED * self.window

    def histogram(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Edges (bins + 2,) in windows, and the share of observed keys in each bin, (L, K, bins + 1), by lifetime.

        Bins are 1.5 W / 30 wide; the last one holds the keys that survive.
        """
        lived = self.lived.transpose(0, 2, 1, 3)[:, :, self.observed]
        bin_of = np.minimum(lived * _BINS // (OBSERVED * self.window), _BINS).astype(int)
        counts = np.stack([(bin_of == index).sum(-1) for index in range(_BINS + 1)], axis=-1)
        edges = np.linspace(0, OBSERVED + OBSERVED / _BINS, _BINS + 2)
        return edges, counts / max(1, int(self.observed.sum()))

    def surviving_by_chance(self, *, sinks: int = 0, recent: int = 0) -> float:
        """Share of observed keys that would survive were the scores in random order; nan where no key is observed.

        A key survives when it is among the W best of those its document has 1.5 W queries on, or kept in any case.

        Args:
            sinks, recent: of the attention's options, by which keys are kept whatever their score.
        """
        place, age = (np.arange(self.end.shape[1]) - self.start)[self.observed], math.ceil(OBSERVED * self.window)
        if not len(place):
            return math.nan
        others = np.maximum(1, place + age - sinks)  # keys that compete for the window, once it is that old
        kept = (place < sinks) | (recent >= age)
        return float(np.where(kept, 1, np.minimum(1, self.window / others)).mean())

    def kinds(self) -> list[list[str]]:
        """What each head of each layer became; ``undecided`` where no key is observed."""
        position = np.arange(self.end.shape[1])
        first = (position - self.start < _FIRST)[self.observed]
        lived = self.lived.transpose(0, 2, 1, 3)[:, :, self.observed]
        return [[self._kind(lived_n, first) for lived_n in layer] for layer in lived]

    def _kind(self, lived: NDArray[np.int64], first: NDArray[np.bool_]) -> str:
        if not lived.size:
            return "undecided"
        survives = lived >= OBSERVED * self.window
        if (abs(lived - self.window) <= 0.1 * self.window).mean() >= 0.9:
            return "window"
        if (~first).any() and survives[~first].mean() >= 0.1:
            return "long memory"
        if first.any() and survives[first].mean() >= 0.9:
            return "sink"
        return "mixed"

    def save(self, path: Path) -> None:
        """Write to ``path`` (.npz)."""
        with whole(path) as stream:
            np.savez_compressed(stream, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "Lifetimes":
        with np.load(path) as file:
            return cls(file["expiry"], file["start"], file["end"], int(file["window"]))


@torch.no_grad()
def measure_lifetimes(model: Transformer, tokens: Tensor, document_ids: Tensor | None) -> Lifetimes:
    """Run ``model``, all of whose layers are DMA, on ``tokens`` int64 (B, N) and note its keys' expiries.

    Args:
        document_ids: (B, N) as in training, or None when documents see each other there.
    """
    expiries = []

    def note(attention: nn.Module, arguments: tuple[Tensor, Documents | None]) -> None:
        assert isinstance(attention, DynamicMaskAttention)
        x, documents = arguments
        scores = attention.scores(attention.heads(x)[2], documents)
        expiries.append(attention.lifetimes(scores, documents).cpu().numpy())

    attentions = [block.attention for block in model.blocks]
    hooks = [attention.register_forward_pre_hook(note) for attention in attentions]
    try:
        model.eval()
        model(tokens, document_ids)
    finally:
        for hook in hooks:
            hook.remove()
    assert isinstance(attentions[0], DynamicMaskAttention)
    start, end = document_bounds(document_ids, tokens.shape[0], tokens.shape[1], tokens.device)
    return Lifetimes(np.stack(expiries), start.cpu().numpy(), end.cpu().numpy(), attentions[0].window)


def run_lifetimes(path: Path) -> Lifetimes:
    """Lifetimes of the finished DMA run in ``path`` on the first validation tokens, noted in its lifetimes.npz.

    Raises:
        UserError: the run is not DMA's or not of text, or its checkpoint or its token files are gone or not its own.
    """
    noted = path / LIFETIMES
    if noted.exists():
        try:
            return Lifetimes.load(noted)
        except Exception as error:  # whatever a damaged archive raises
            raise UserError(f"{noted} is damaged ({error}); delete it to have it made again.") from error
    trained = open_run(path)
    settings, context, backend = trained.config["data"], trained.context, trained.config["attention"]["name"]
    if backend != "dma":
        raise UserError(f"{path} was trained with attention={backend}: give a run of dma, whose lifetimes vary.")
    if settings["source"] == "mqar":
        raise UserError("lifetimes are measured on text, and it was trained on recall.")
    batches = validation_batches(
        trained.data, context=context, sequences=max(1, _TOKENS // context), max_tokens=max(_TOKENS, context)
    )
    batch = next(batches)
    lifetimes = measure_lifetimes(
        trained.model(), batch["tokens"], batch["document_ids"] if settings["mask_documents"] else None
    )
    with contextlib.suppress(OSError):  # runs that one may only read are measured every time
        lifetimes.save(noted)
    return lifetimes
