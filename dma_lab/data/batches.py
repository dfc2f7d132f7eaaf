"""The batch of a step as a pure function of (token files, seed, step); and the fixed batches that validate.

The training stream is cut into windows of ``context`` inputs. An epoch visits every window once, in an order drawn
from (seed, epoch); step s takes the next ``sequences`` windows of that endless row of epochs. Who asks, how often, and
after how many restarts does not enter.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dma_lab.data.store import TokenData
from dma_lab.messages import UserError, warn_once

IGNORED_TARGET = -100
"""Marks a target that is padding (the default ``ignore_index`` of PyTorch's cross entropy)."""


def sequences_in(data: TokenData, context: int) -> int:
    """Windows of ``context`` inputs (and their targets, one token further) in an epoch."""
    return max(0, len(data.train_tokens) - 1) // context


def refuse_repeat(data: TokenData, tokens_needed: int, allow_repeat: bool) -> None:
    """Raise UserError if ``tokens_needed`` (targets trained on) exceed the training stream; where that is allowed, say
    how often it is read: what is trained on again is worth less than new text."""
    held = len(data.train_tokens) - 1
    if tokens_needed <= held:
        return
    epochs = f"{tokens_needed / held:.2f} epochs"
    if not allow_repeat:
        raise UserError(
            f"The budget of {tokens_needed:,} tokens is more than the corpus' {held:,} training tokens and would "
            f"repeat them for {epochs}: set data.allow_repeat=true, or take a larger corpus or a smaller budget."
        )
    warn_once(f"{tokens_needed:,} tokens are {epochs} of the corpus' {held:,} training tokens, each in another order.")


def sequences_from(
    data: TokenData, *, seed: int, first: int, count: int, context: int, mask_documents: bool
) -> dict[str, Tensor | None]:
    """``count`` windows of the endless row of epochs, from its ``first`` on; step s begins at s times those of a step.

    Returns:
        ``tokens`` and ``targets`` int64 (count, context); ``document_ids`` int32 (count, context), counting a window's
        documents from 0, or None unless ``mask_documents``.

    Raises:
        UserError: the training stream is shorter than one window.
    """
    windows = sequences_in(data, context)
    if windows == 0:
        raise UserError(
            f"The corpus has {len(data.train_tokens):,} training tokens, fewer than one window of context={context}: "
            "take a larger corpus or a shorter context."
        )
    chosen = _windows(windows, seed, first, count)
    rows_bn = np.stack([data.train_tokens[w * context : (w + 1) * context + 1] for w in chosen]).astype(np.int64)
    inputs_bn = rows_bn[:, :-1]
    return {
        "tokens": torch.from_numpy(inputs_bn.copy()),
        "targets": torch.from_numpy(rows_bn[:, 1:].copy()),
        "document_ids": _document_ids(inputs_bn, data.eot_id) if mask_documents else None,
    }


def documents_in(data: TokenData, *, seed: int, first: int, count: int, context: int) -> list[int]:
    """The training documents, by number and ascending, that ``sequences_from`` takes these sequences from."""
    starts, found = np.array(data.train_document_starts), set[int]()
    for window in _windows(sequences_in(data, context), seed, first, count):
        # The target of a window's last token is the next one's first.
        begin, end = np.searchsorted(starts, [window * context, (window + 1) * context], side="right") - 1
        found.update(range(begin, end + 1))
    return sorted(found)


def scored_targets(data: TokenData, max_tokens: int | None = None) -> int:
    """How many targets of the validation stream are scored: at most ``max_tokens``, all of them by default.

    They end where a document does, its end scored, unless that would leave out more than a tenth of what is allowed.
    """
    whole = len(data.validation_tokens) - 1
    if max_tokens is None or max_tokens >= whole:
        return whole
    # A document's end is the EOT that opens the next one: target s - 1 for one that starts at s.
    starts = data.validation_document_starts
    last_end = int(starts[np.searchsorted(starts, max_tokens, side="right") - 1])
    return last_end if last_end >= 0.9 * max_tokens else max_tokens


def validation_batches(
    data: TokenData, *, context: int, sequences: int, max_tokens: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """The first targets of the validation stream, ``scored_targets`` many, in order, each exactly once.

    Yields:
        ``tokens``, ``targets`` int64 and ``document_ids`` int32 (≤ sequences, context) as in training;
        ``target_documents`` int64: the document whose text predicts the target, an index into
        ``validation_document_starts`` (a document's end, the next EOT, counts as its own last target);
        ``target_bytes`` int64: bytes of text each target stands for; ``target_ends`` bool: whether it is a document's
        end. The last window is filled with EOTs whose targets are -100, of 0 bytes, in the last document.
    """
    stream = data.validation_tokens
    scored = scored_targets(data, max_tokens)
    for first in range(0, scored, sequences * context):
        last = min(first + sequences * context, scored)
        rows = -(-(last - first) // context)
        tokens = np.full(rows * context, data.eot_id, dtype=np.int64)
        targets = np.full(rows * context, IGNORED_TARGET, dtype=np.int64)
        target_bytes = np.zeros(rows * context, dtype=np.int64)
        documents = np.searchsorted(data.validation_document_starts, np.arange(first, last), side="right") - 1
        held = last - first
        tokens[:held] = stream[first:last]
        targets[:held] = stream[first + 1 : last + 1]
        target_bytes[:held] = data.token_bytes[targets[:held]]
        target_documents = np.pad(documents, (0, rows * context - held), mode="edge")
        inputs_bn = tokens.reshape(rows, context)
        yield {
            "tokens": torch.from_numpy(inputs_bn),
            "targets": torch.from_numpy(targets.reshape(rows, context)),
            "document_ids": _document_ids(inputs_bn, data.eot_id),
            "target_documents": torch.from_numpy(target_documents.astype(np.int64).reshape(rows, context)),
            "target_bytes": torch.from_numpy(target_bytes.reshape(rows, context)),
            "target_ends": torch.from_numpy((targets == data.eot_id).reshape(rows, context)),
        }


def _windows(windows: int, seed: int, first: int, count: int) -> list[int]:
    """Which of ``windows`` windows each of ``count`` sequences is, from ``first`` on."""
    return [int(_epoch_order(windows, seed, i // windows)[i % windows]) for i in range(first, first + count)]


@lru_cache(maxsize=4)
def _epoch_order(windows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of ``windows`` drawn from (seed, epoch).

    NumPy promises that a bit generator's raw numbers stay the same between its versions, but promises nothing for
    ``Generator.permutation``; hence the sort of raw numbers.
    """
    generator = np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64))
    return np.argsort(generator.random_raw(windows), kind="stable")


def _document_ids(tokens_bn: NDArray[np.int64], eot_id: int) -> Tensor:
    """int32 (B, N): the number of the document within its window, from 0. Only a document's start is an EOT."""
    documents_bn = np.cumsum(tokens_bn == eot_id, axis=1, dtype=np.int32)
    return torch.from_numpy(documents_bn - documents_bn[:, :1])
