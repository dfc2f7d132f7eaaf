"""Which keys a kernel must read: lists of live keys per block of queries.

Triton kernels. Compactions by prefix sums, so every result is the same on every run. Nothing here is larger than
N / block times the number of keys alive at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dma_lab.kernels.interval.compaction import (
    BlockListConfig,
    BlockListSizes,
    KeyList,
    SpanConfig,
    block_lists_kernel,
    by_arrival_kernel,
    coarse_lists_kernel,
    count_ever_live_kernel,
)
from dma_lab.kernels.sizes import cdiv, next_power_of_2

TILE = 64  # keys of a list that share one flag
_SPAN = 1024  # queries that share a first, coarse list
# Keys that a program compacts at a time: one per thread, so that threads beside each other store beside each other.
CHUNK = 256
_BLOCK_CHUNK = 128  # the same, of a coarse list


FlatLists = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class BlockLists(NamedTuple):
    """For every key/value head and block of queries, the keys that live for any of them: what kernels that go by blocks
    of queries read."""

    index_ris: Tensor
    """int32 (R, blocks, capacity), in order of arrival. The last TILE is filled up with keys that no query sees
    (index and span 0), and there always is one; undefined behind it.

    By arrival, because the order must not depend on what comes later: the keys alive when a block opens are known by
    then, those that arrive in it follow, so a query sums the same keys in the same order whatever comes after it.
    """
    span_ris: Tensor
    """int32 (R, blocks, capacity): which of the block's queries see the key, the first in the low 16 bits and the
    one after the last in the high 16, counted from the block's first; that one is ``block`` for a key that outlives it.
    """
    mask_rif: Tensor
    """int32 (R, blocks, capacity / TILE): what a kernel must ask of the TILE's keys. 0: nothing, all of them live for
    all of the block, as in most tiles; 1: whether they still live, all had arrived when the block opened; 2: both."""
    length_ri: Tensor
    """int32 (R, blocks): how many keys; -1 where more live than the capacity allows."""
    bias_ris: Tensor | None
    """float32 (R, blocks, capacity): the keys' biases times log2(e), minus the block's reference. Beside the indices,
    because a kernel that gathers them again waits for the index first, and every thread does it for itself."""
    reference_ri: Tensor | None
    """float32 (R, blocks): the largest bias, times log2(e), of the keys alive when the block's span opens and of those
    that came since and live when the block does (0 if there is none): what all its queries know. It keeps softmax's
    sums near 1, however large all biases are and however steeply they grow with place."""


class KeyLists(NamedTuple):
    """The lists of all blocks, and all keys of a key/value head in order of arrival."""

    by_arrival_rn: Tensor
    """int32 (R, N), a permutation of the keys: those that ever live, then those that never do, each in order of
    arrival."""
    ever_rx: Tensor
    """int32 (R, chunks): how many keys of each CHUNK ever live."""
    blocks: BlockLists

    def flatten(self) -> FlatLists:
        """As an operator returns them: always eight tensors, those that lack without a bias empty."""
        index, span, mask, length, bias, reference = self.blocks
        if bias is None or reference is None:
            bias, reference = (index.new_empty(0, dtype=torch.float32) for _ in range(2))
        return self.by_arrival_rn, self.ever_rx, index, span, mask, length, bias, reference

    @classmethod
    def of(cls, tensors: Sequence[Tensor], has_bias: bool) -> "KeyLists":
        """The inverse of ``flatten``."""
        by_arrival, ever, index, span, mask, length, bias, reference = tensors
        beside = (bias, reference) if has_bias else (None, None)
        return cls(by_arrival, ever, BlockLists(index, span, mask, length, *beside))


def most_alive(expiry: Tensor) -> int:
    """The largest number of keys of one head that any query sees. Waits for the device."""
    N = expiry.shape[-1]
    expiry_rn = expiry.reshape(-1, N).long()
    ever_rn = (expiry_rn > torch.arange(N, device=expiry.device)).long()
    leaves_rn = expiry_rn.new_zeros(expiry_rn.shape[0], N + 1).scatter_add_(1, expiry_rn, ever_rn)
    return int((ever_rn - leaves_rn[:, :N]).cumsum(-1).max())


def empty_key_lists(expiry: Tensor, block: int, max_live: int, has_bias: bool) -> KeyLists:
    """Memory for what ``build_key_lists`` makes."""
    B, K, N = expiry.shape
    R, blocks, tiles = B * K, -(-N // block), -(-min(N, max_live + block) // TILE)
    capacity = tiles * TILE  # whole tiles: nothing that reads one asks where the list's memory ends
    return KeyLists(
        _new(expiry, R, N),
        _new(expiry, R, cdiv(N, CHUNK)),
        BlockLists(
            _new(expiry, R, blocks, capacity),
            _new(expiry, R, blocks, capacity),
            _new(expiry, R, blocks, tiles),
            _new(expiry, R, blocks),
            _new(expiry, R, blocks, capacity, dtype=torch.float32) if has_bias else None,
            _new(expiry, R, blocks, dtype=torch.float32) if has_bias else None,
        ),
    )


def build_key_lists(expiry: Tensor, block: int, max_live: int, bias: Tensor | None = None) -> KeyLists:
    """Key lists for blocks of ``block`` queries, from int32 expiries and floating-point biases, (B, K, N), contiguous.

    ``max_live`` bounds the keys alive at once and with it the memory. Keys that never live are left out first, then
    coarse lists of whole spans are made, so that a block looks at a few thousand keys and not at all before it.
    """
    B, K, N = expiry.shape
    R, spans, chunks = B * K, cdiv(N, _SPAN), cdiv(N, CHUNK)
    config = SpanConfig(_SPAN, CHUNK, next_power_of_2(chunks))
    coarse_capacity = min(N, max_live + _SPAN)
    lists = empty_key_lists(expiry, block, max_live, bias is not None)

    def new_list(key: Tensor) -> KeyList:
        # Expiries and biases stand beside indices: gathering them again, 4 bytes per sector, costs more than all else.
        return KeyList(key, torch.empty_like(key), None if bias is None else torch.empty_like(key, dtype=torch.float32))

    arrivals, coarse = new_list(lists.by_arrival_rn), new_list(_new(expiry, R, spans, coarse_capacity))
    coarse_length, coarse_reference = _new(expiry, R, spans), _new(expiry, R, spans, dtype=torch.float32)
    count_ever_live_kernel[(chunks, R)](expiry, lists.ever_rx, N, CHUNK)
    by_arrival_kernel[(chunks, R)](expiry, bias, lists.ever_rx, arrivals, N, config)
    coarse_lists_kernel[(spans, R)](
        arrivals, lists.ever_rx, coarse, coarse_length, coarse_reference, N, coarse_capacity, chunks, config,
        num_warps=CHUNK // 32,
    )  # fmt: skip
    max_tiles = next_power_of_2(lists.blocks.mask_rif.shape[2])
    block_lists_kernel[(cdiv(N, block), R)](
        expiry, bias, coarse, coarse_length, coarse_reference, lists.blocks,
        BlockListSizes(N, coarse_capacity, lists.blocks.index_ris.shape[2]),
        BlockListConfig(block, TILE, _SPAN, _BLOCK_CHUNK, max_tiles), num_warps=_BLOCK_CHUNK // 32,
    )  # fmt: skip
    return lists


def _new(like: Tensor, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return like.new_empty(shape, dtype=dtype)
