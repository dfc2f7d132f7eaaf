"""Which keys a kernel must read: lists of live keys a block of queries.

Triton kernels. Compactions by prefix sums, so every result is the same on every run. Nothing here is larger than
N / block times the number of keys alive at once.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from dma_lab.kernels.key_lists_triton import (
    block_lists_kernel,
    by_arrival_kernel,
    coarse_lists_kernel,
    count_ever_live_kernel,
)

TILE = 64  # keys of a list that share one flag
_SPAN = 1024  # queries that share a first, coarse list
# Keys that a program compacts at a time: one a thread, so that threads beside each other store beside each other.
CHUNK = 256
_BLOCK_CHUNK = 128  # the same, of a coarse list


class KeyLists(NamedTuple):
    """For every key/value head and block of queries, the keys that live for any of them."""

    by_arrival_rn: Tensor
    """int32 (B*K, N), a permutation of the keys: those that ever live, then those that never do, each in order of
    arrival."""
    ever_rc: Tensor
    """int32 (B*K, chunks): how many keys of each CHUNK ever live."""
    index_rbs: Tensor
    """int32 (B*K, blocks, capacity), in order of arrival. The last TILE is filled up with keys that no query sees
    (index and span 0), and there always is one; undefined behind it.

    By arrival, because the order must not depend on what comes later: the keys alive when a block opens are known by
    then, those that arrive in it follow, so a query sums the same keys in the same order whatever comes after it.
    """
    span_rbs: Tensor
    """int32 (B*K, blocks, capacity): which of the block's queries see the key, the first in the low 16 bits and the
    one after the last in the high 16, counted from the block's first; that one is ``block`` for a key that outlives it.
    """
    mask_rbt: Tensor
    """int32 (B*K, blocks, capacity / TILE): what a kernel must ask of the TILE's keys. 0: nothing, all of them live for
    all of the block, as in most tiles; 1: whether they still live, all had arrived when the block opened; 2: both."""
    total_rb: Tensor
    """int32 (B*K, blocks): how many; -1 where more keys live than the capacity allows."""
    bias_rbs: Tensor | None
    """float32 (B*K, blocks, capacity): the keys' biases times log2(e), minus the block's reference. Beside the indices,
    because a kernel that gathers them again waits for the index first, and every thread does it for itself."""
    reference_rb: Tensor | None
    """float32 (B*K, blocks): the largest bias, times log2(e), among the keys alive when the block's span opens (0 if
    none is): what all its queries know. It keeps softmax's sums near 1, however large all biases are."""

    @property
    def of_blocks(self) -> tuple[Tensor | None, ...]:
        """What the kernels that go by blocks of queries read: all but the first two."""
        return self[2:]


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
    rows, blocks, tiles = B * K, -(-N // block), -(-min(N, max_live + block) // TILE)
    capacity = tiles * TILE  # whole tiles: nothing that reads one asks where the list's memory ends

    def new(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=expiry.device)

    return KeyLists(
        new(rows, N),
        new(rows, triton.cdiv(N, CHUNK)),
        new(rows, blocks, capacity),
        new(rows, blocks, capacity),
        new(rows, blocks, tiles),
        new(rows, blocks),
        new(rows, blocks, capacity, dtype=torch.float32) if has_bias else None,
        new(rows, blocks, dtype=torch.float32) if has_bias else None,
    )


def build_key_lists(expiry: Tensor, block: int, max_live: int, bias: Tensor | None = None) -> KeyLists:
    """Key lists for blocks of ``block`` queries, from int32 expiries and floating-point biases, (B, K, N), contiguous.

    ``max_live`` bounds the keys alive at once and with it the memory. Keys that never live are left out first, then
    coarse lists of whole spans are made, so that a block looks at a few thousand keys and not at all before it.
    """
    B, K, N = expiry.shape
    rows, spans, chunks = B * K, triton.cdiv(N, _SPAN), triton.cdiv(N, CHUNK)
    coarse_capacity = min(N, max_live + _SPAN)
    lists = empty_key_lists(expiry, block, max_live, bias is not None)
    has_bias = bias is not None

    def new(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=expiry.device)

    def new_beside_index(*shape: int) -> tuple[Tensor, Tensor | None]:
        # Expiries and biases stand beside indices: gathering them again, 4 bytes a sector, costs more than all else.
        return new(*shape), new(*shape, dtype=torch.float32) if has_bias else None

    arrivals = lists.by_arrival_rn, *new_beside_index(rows, N)
    count_ever_live_kernel[(chunks, rows)](expiry, lists.ever_rc, N, CHUNK)
    by_arrival_kernel[(chunks, rows)](
        expiry,
        bias,
        lists.ever_rc,
        *arrivals,
        N,
        CHUNK=CHUNK,
        MAX_CHUNKS=triton.next_power_of_2(chunks),
        HAS_BIAS=has_bias,
    )
    coarse_index = new(rows, spans, coarse_capacity)
    coarse_totals = new(rows, spans), new(rows, spans, dtype=torch.float32)
    coarse = coarse_index, *new_beside_index(rows, spans, coarse_capacity), *coarse_totals
    coarse_lists_kernel[(spans, rows)](
        *arrivals,
        lists.ever_rc,
        *coarse,
        N,
        coarse_capacity,
        chunks,
        SPAN=_SPAN,
        CHUNK=CHUNK,
        MAX_CHUNKS=triton.next_power_of_2(chunks),
        HAS_BIAS=has_bias,
        num_warps=CHUNK // 32,
    )
    block_lists_kernel[(triton.cdiv(N, block), rows)](
        *coarse,
        *lists.of_blocks,
        N,
        coarse_capacity,
        lists.index_rbs.shape[2],
        BLOCK=block,
        TILE=TILE,
        SPAN=_SPAN,
        CHUNK=_BLOCK_CHUNK,
        MAX_TILES=triton.next_power_of_2(lists.mask_rbt.shape[2]),
        HAS_BIAS=has_bias,
        num_warps=_BLOCK_CHUNK // 32,
    )
    return lists
