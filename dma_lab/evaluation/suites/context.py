"""``suite=context``: the same validation targets scored with shorter and longer contexts, each exactly once.

A window of ``context`` tokens slides over the validation stream by ``stride``; of each window only the targets that no
window before it scored are counted. So a target is predicted from at least ``context - stride`` tokens wherever the
stream has them (and its document, when documents do not see each other), and contexts are compared on one set of
targets. The same sums, by how many tokens a target was predicted from, say how far back a model looks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from dma_lab.attention import RopeBase
from dma_lab.data.batches import scored_targets
from dma_lab.data.store import TokenData
from dma_lab.evaluation.checkpoint import TrainedRun
from dma_lab.evaluation.perplexity import ValidationScore
from dma_lab.evaluation.record import EvaluationRecord
from dma_lab.evaluation.session import Machine, show
from dma_lab.evaluation.suite import Cell, Job, Scores, Suite
from dma_lab.messages import UserError, warn_once
from dma_lab.model import Transformer
from dma_lab.settings import Count, Width


@dataclass(frozen=True)
class ContextSuite(Suite):
    """A cell is a context length."""

    name: Literal["context"]
    lengths: Annotated[list[Width], Field(min_length=1)] | None
    stride: Count | None
    tokens: Count | None
    mask_documents: bool | None
    rope_base: RopeBase | None
    title = "scoring contexts"
    reported_as = "contexts"

    def jobs(self, run: TrainedRun, machine: Machine, record: EvaluationRecord) -> list[Job]:
        lengths = self.lengths or [max(2, run.context * share // 4) for share in (1, 2, 4, 8, 16)]
        trained = run.config["data"]["mask_documents"]
        same: dict[str, Any] = {
            "tokens": scored_targets(run.data, self.tokens or run.config["trainer"]["validation_tokens"]),
            "mask_documents": trained if self.mask_documents is None else self.mask_documents,
            "rope_base": self.rope_base or run.rope_base,
        }
        if self.stride is not None and self.stride > min(lengths):
            raise UserError(
                f"suite.stride={self.stride} is longer than the shortest context of {min(lengths)} tokens and would "
                "leave targets out: choose a shorter one, or null for half of each context."
            )
        if same["tokens"] < max(lengths):
            warn_once(
                f"the {same['tokens']:,} validation tokens that are scored are fewer than a context of "
                f"{max(lengths):,}: no target has that much context before it; set suite.tokens or data with more "
                "validation text."
            )
        cells: list[Cell] = [
            {"context": length, "stride": self.stride or max(1, length // 2), **same} for length in sorted(set(lengths))
        ]

        def score(cell: Cell, model: Transformer, advance: Callable[[float], None]) -> list[Scores]:
            sums = score_sliding(
                model,
                run.data,
                context=cell["context"],
                stride=cell["stride"],
                targets=cell["tokens"],
                mask_documents=cell["mask_documents"],
                batch_tokens=machine.batch_tokens,
                on_targets=lambda done: advance(done / cell["tokens"]),
            )
            file = f"context-{record.name(cell)}.npz"
            sums.save(record.folder / file)
            figures = {name.removeprefix("val_"): value for name, value in sums.metrics().items()}
            return [{**figures, "by_tokens_seen": loss_by_tokens_seen(sums), "sums": file}]

        return [Job([cell], cell["context"], partial(score, cell)) for cell in cells]

    def show(self, run: TrainedRun, found: Sequence[tuple[Cell, Scores]], folder: Path) -> None:
        show(
            f"{run.path.name}: {found[0][0]['tokens']:,} validation tokens, trained on contexts of {run.context}",
            ("context", "stride", "loss", "perplexity", "bits per byte"),
            [
                (
                    *(cell["context"], cell["stride"], scores["loss"], scores["perplexity"]),
                    scores.get("bits_per_byte", "–"),  # none where the tokenizer loses text
                )
                for cell, scores in found
            ],
        )


class Window(NamedTuple):
    """Inputs ``start`` … ``end - 1`` of a stream, of which those from ``first`` on have their targets scored here."""

    start: int
    first: int
    end: int


def sliding_windows(targets: int, context: int, stride: int) -> Iterator[Window]:
    """Windows of min(context, targets) inputs that score targets 0 … targets - 1 once each; input i predicts target i.

    Raises:
        UserError: a stride that would leave targets out.
    """
    if not 1 <= stride <= context:
        raise UserError(f"stride={stride}: choose from 1 to the context of {context} tokens, or targets are left out.")
    first = 0
    while first < targets:
        end = min(first + (stride if first else context), targets)
        yield Window(max(0, end - context), first, end)
        first = end


@torch.no_grad()
def score_sliding(
    model: Transformer,
    data: TokenData,
    *,
    context: int,
    stride: int,
    targets: int,
    mask_documents: bool,
    batch_tokens: int,
    on_targets: Callable[[int], None] = lambda done: None,
) -> ValidationScore:
    """Score the first ``targets`` targets of the validation stream (no more than there are).

    Args:
        mask_documents: documents do not see each other, as in training.
        batch_tokens: tokens the model is given at a time, rounded to whole windows.
        on_targets: called with the number of targets done.

    Returns:
        Sums per document, as ``score_validation`` gives; and by position, which here is the number of tokens that a
        target is predicted from, less one.

    Raises:
        UserError: a stride that would leave targets out.
    """
    stream, starts = data.validation_tokens, data.validation_document_starts
    targets = min(targets, len(stream) - 1)
    document = np.searchsorted(starts, np.arange(targets), side="right") - 1
    nats = np.zeros(targets)
    seen = np.zeros(targets, dtype=np.int64)
    device = model.embedding.weight.device
    windows = list(sliding_windows(targets, context, stride))
    rows = max(1, batch_tokens // context)
    for at in range(0, len(windows), rows):
        batch = windows[at : at + rows]
        inputs = [slice(window.start, window.end) for window in batch]
        tokens_bn = np.stack([stream[i.start : i.stop + 1] for i in inputs]).astype(np.int64)
        documents_bn = np.stack([document[i] - document[i.start] for i in inputs]).astype(np.int32)
        tokens = torch.from_numpy(tokens_bn).to(device)
        document_ids = torch.from_numpy(documents_bn).to(device) if mask_documents else None
        logits = model(tokens[:, :-1], document_ids).float()
        nats_bn = F.cross_entropy(logits.mT, tokens[:, 1:], reduction="none").double().cpu().numpy()
        for window, nats_n in zip(batch, nats_bn, strict=True):
            scored = slice(window.first, window.end)
            nats[scored] = nats_n[window.first - window.start :]
            begins = np.maximum(window.start, starts[document[scored]]) if mask_documents else window.start
            seen[scored] = np.arange(window.first, window.end) - begins
        on_targets(batch[-1].end)
    target_ids, documents = stream[1 : targets + 1], len(starts)
    return ValidationScore(
        document_nats=np.bincount(document, nats, documents).astype(np.float64),
        document_end_nats=np.bincount(document, nats * (target_ids == data.eot_id), documents).astype(np.float64),
        document_tokens=np.bincount(document, minlength=documents),
        document_bytes=np.bincount(document, data.token_bytes[target_ids], documents).astype(np.int64),
        position_nats=np.bincount(seen, nats, context).astype(np.float64),
        position_tokens=np.bincount(seen, minlength=context),
    )


def loss_by_tokens_seen(score: ValidationScore) -> list[dict[str, float]]:
    """Nats per target among those predicted from ``from`` … ``to`` tokens, these growing by powers of two."""
    bands = []
    low, context = 1, len(score.position_tokens)
    while low <= context:
        high = min(2 * low - 1, context)
        tokens = int(score.position_tokens[low - 1 : high].sum())
        if tokens:
            nats = float(score.position_nats[low - 1 : high].sum())
            bands.append({"from": low, "to": high, "tokens": tokens, "loss": nats / tokens})
        low = high + 1
    return bands
