"""Which keys a kernel must read: lists of live keys a block of queries, and an order of keys for the backward pass.

Triton kernels. Both are compactions by prefix sums, so every result is the same on every run. Nothing here is larger
than N / block times the number of keys alive at once.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64  # keys of a list that share one flag
LOG2_E = tl.constexpr(1.4426950408889634)
_SPAN = 1024  # queries that share a first, coarse list
_CHUNK = 2048  # keys that a program compacts at a time


class KeyLists(NamedTuple):
    """For every key/value head and block of queries, the keys that live for any of them."""

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
    """float32 (B*K, blocks): the largest bias, times log2(e), among the keys alive when the block opens (0 if none is):
    what all the block's queries know. It keeps softmax's sums near 1, however large all biases are."""


def most_alive(expiry: Tensor) -> int:
    """The largest number of keys of one head that any query sees. Waits for the device."""
    N = expiry.shape[-1]
    expiry_rn = expiry.reshape(-1, N).long()
    ever_rn = (expiry_rn > torch.arange(N, device=expiry.device)).long()
    leaves_rn = expiry_rn.new_zeros(expiry_rn.shape[0], N + 1).scatter_add_(1, expiry_rn, ever_rn)
    return int((ever_rn - leaves_rn[:, :N]).cumsum(-1).max())


def build_key_lists(expiry: Tensor, block: int, max_live: int, bias: Tensor | None = None) -> KeyLists:
    """Key lists for blocks of ``block`` queries, from int32 expiries and floating-point biases, (B, K, N), contiguous.

    ``max_live`` bounds the keys alive at once and with it the memory. Coarse lists of whole spans come first, so that
    a block looks at a few thousand keys and not at all that came before it.
    """
    B, K, N = expiry.shape
    rows, blocks, spans = B * K, triton.cdiv(N, block), triton.cdiv(N, _SPAN)
    coarse_capacity = min(N, max_live + _SPAN)
    tiles = triton.cdiv(min(N, max_live + block), TILE)
    capacity = tiles * TILE  # whole tiles: nothing that reads one asks where the list's memory ends

    def new(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=expiry.device)

    # Expiries are kept beside the indices: gathering them again, 4 bytes a sector, cost more than all the rest.
    coarse = new(rows, spans, coarse_capacity), new(rows, spans, coarse_capacity), new(rows, spans)
    _coarse_lists_kernel[(spans, rows)](expiry, *coarse, N, coarse_capacity, _SPAN, _CHUNK, num_warps=8)
    lists = KeyLists(
        new(rows, blocks, capacity),
        new(rows, blocks, capacity),
        new(rows, blocks, tiles),
        new(rows, blocks),
        None if bias is None else new(rows, blocks, capacity, dtype=torch.float32),
        None if bias is None else new(rows, blocks, dtype=torch.float32),
    )
    _block_lists_kernel[(blocks, rows)](
        *coarse,
        bias,
        *lists,
        N,
        coarse_capacity,
        capacity,
        BLOCK=block,
        TILE=TILE,
        SPAN=_SPAN,
        CHUNK=_CHUNK,
        HAS_BIAS=bias is not None,
        num_warps=8,
    )
    return lists


def bucket_size(N: int) -> int:
    """Keys, in order of arrival, that ``backward_key_order`` sorts by expiry together."""
    return 512 if N <= 16_384 else 1024


def backward_key_order(expiry: Tensor) -> Tensor:
    """A permutation of the keys, int32 (B*K, N): keys that ever live before those that never do, and neighbours with
    lifetimes that overlap.

    Keys are cut into buckets of equal size by arrival and sorted by expiry within a bucket, longest-lived first. Groups
    of 64 neighbours then span 1.03 (sliding window) to 1.4 (drifting scores) times the live pairs; by expiry alone it
    was 2 to 3, by arrival alone 2 to 3 times.
    """
    B, K, N = expiry.shape
    rows, chunks, bucket = B * K, triton.cdiv(N, _CHUNK), bucket_size(N)
    ever_rc = torch.empty(rows, chunks, dtype=torch.int32, device=expiry.device)
    by_arrival_rn = torch.empty(rows, N, dtype=torch.int32, device=expiry.device)
    order_rn = torch.empty_like(by_arrival_rn)
    _count_ever_live_kernel[(chunks, rows)](expiry, ever_rc, N, _CHUNK)
    _order_by_arrival_kernel[(chunks, rows)](
        expiry, ever_rc, by_arrival_rn, N, chunks, _CHUNK, triton.next_power_of_2(chunks)
    )
    _sort_buckets_kernel[(triton.cdiv(N, bucket), rows)](expiry, by_arrival_rn, order_rn, N, bucket)
    return order_rn


@triton.jit
def _coarse_lists_kernel(
    expiry_ptr, list_ptr, listed_expiry_ptr, total_ptr, N, capacity, SPAN: tl.constexpr, CHUNK: tl.constexpr
):
    """Keys that live for any query of a span, in order of arrival."""
    span, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    t0 = span * SPAN
    t1 = tl.minimum(t0 + SPAN, N)
    slot_of_span = row * tl.num_programs(0) + span
    total = 0
    for start in range(0, t1, CHUNK):
        j = start + tl.arange(0, CHUNK)
        expiry = tl.load(expiry_ptr + row * N + j, mask=j < t1, other=0)
        live = ((expiry > t0) & (expiry > j)).to(tl.int32)
        slot = total + tl.cumsum(live, 0) - live
        store = (live != 0) & (slot < capacity)
        tl.store(list_ptr + slot_of_span * capacity + slot, j, mask=store)
        tl.store(listed_expiry_ptr + slot_of_span * capacity + slot, expiry, mask=store)
        total += tl.sum(live, 0)
    tl.store(total_ptr + slot_of_span, total)


@triton.jit
def _block_lists_kernel(
    coarse_ptr,
    coarse_expiry_ptr,
    coarse_total_ptr,
    bias_ptr,
    list_ptr,
    span_ptr,
    mask_ptr,
    total_ptr,
    list_bias_ptr,
    reference_ptr,
    N,
    coarse_capacity,
    capacity,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Out of a span's keys those that live for a block of its queries, in the same order."""
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    t0 = block * BLOCK
    t1 = tl.minimum(t0 + BLOCK, N)
    slot_of_span = row * tl.cdiv(N, SPAN) + t0 // SPAN
    slot_of_block = row * tl.num_programs(0) + block
    coarse_ptr += slot_of_span * coarse_capacity
    coarse_expiry_ptr += slot_of_span * coarse_capacity
    list_ptr += slot_of_block * capacity
    span_ptr += slot_of_block * capacity
    mask_ptr += slot_of_block * (capacity // TILE)
    coarse_total = tl.load(coarse_total_ptr + slot_of_span)
    in_reach = tl.minimum(coarse_total, coarse_capacity)
    total = 0
    reference = float("-inf")
    for start in range(0, in_reach, CHUNK):
        i = start + tl.arange(0, CHUNK)
        j = tl.load(coarse_ptr + i, mask=i < in_reach, other=N)
        expiry = tl.load(coarse_expiry_ptr + i, mask=i < in_reach, other=0)
        live = ((j < t1) & (expiry > t0)).to(tl.int32)
        slot = total + tl.cumsum(live, 0) - live
        store = (live != 0) & (slot < capacity)
        tl.store(list_ptr + slot, j, mask=store)
        first, end = tl.maximum(j - t0, 0), tl.where(expiry >= t1, BLOCK, expiry - t0)
        tl.store(span_ptr + slot, first | (end << 16), mask=store)
        if HAS_BIAS:
            known = store & (j <= t0)
            bias = tl.load(bias_ptr + row * N + j, mask=known, other=float("-inf")).to(tl.float32)
            reference = tl.maximum(reference, tl.max(bias, 0))
        total += tl.sum(live, 0)
    tl.debug_barrier()  # the lists are read again
    listed = tl.minimum(total, capacity)
    if HAS_BIAS:
        reference = tl.where(reference > float("-inf"), reference * LOG2_E, 0.0)
        tl.store(reference_ptr + slot_of_block, reference)
    TILES: tl.constexpr = CHUNK // TILE
    filled = tl.cdiv(tl.maximum(listed, 1), TILE) * TILE
    for start in range(0, filled, CHUNK):
        i = start + tl.arange(0, CHUNK)
        span = tl.load(span_ptr + i, mask=i < listed, other=0)
        asks = tl.where(span == BLOCK << 16, 0, tl.where((i < listed) & ((span & 0xFFFF) == 0), 1, 2))
        tile = start // TILE + tl.arange(0, TILES)
        tl.store(mask_ptr + tile, tl.max(tl.reshape(asks, (TILES, TILE)), 1), mask=tile < capacity // TILE)
        filler = (i >= listed) & (i < filled)
        tl.store(list_ptr + i, tl.zeros_like(i), mask=filler)
        tl.store(span_ptr + i, tl.zeros_like(i), mask=filler)
        if HAS_BIAS:
            j = tl.load(list_ptr + i, mask=i < listed, other=0)
            bias = tl.load(bias_ptr + row * N + j, mask=i < listed, other=0.0).to(tl.float32)
            relative = tl.where(filler, 0.0, bias * LOG2_E - reference)
            tl.store(list_bias_ptr + slot_of_block * capacity + i, relative, mask=i < filled)
    fits = (total <= capacity) & (coarse_total <= coarse_capacity)
    tl.store(total_ptr + slot_of_block, tl.where(fits, total, -1))


@triton.jit
def _count_ever_live_kernel(expiry_ptr, ever_ptr, N, CHUNK: tl.constexpr):
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    j = chunk * CHUNK + tl.arange(0, CHUNK)
    ever = tl.load(expiry_ptr + row * N + j, mask=j < N, other=0) > j
    tl.store(ever_ptr + row * tl.num_programs(0) + chunk, tl.sum(ever.to(tl.int32), 0))


@triton.jit
def _order_by_arrival_kernel(expiry_ptr, ever_ptr, order_ptr, N, chunks, CHUNK: tl.constexpr, MAX_CHUNKS: tl.constexpr):
    """Keys that ever live, then keys that never do, both in order of arrival."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.arange(0, MAX_CHUNKS)
    ever_c = tl.load(ever_ptr + row * chunks + c, mask=c < chunks, other=0)
    ever_before = tl.sum(tl.where(c < chunk, ever_c, 0), 0)
    never_from = tl.sum(ever_c, 0) + chunk * CHUNK - ever_before
    i = tl.arange(0, CHUNK)
    j = chunk * CHUNK + i
    ever = (tl.load(expiry_ptr + row * N + j, mask=j < N, other=0) > j).to(tl.int32)
    ever_rank = tl.cumsum(ever, 0) - ever
    slot = tl.where(ever != 0, ever_before + ever_rank, never_from + i - ever_rank)
    tl.store(order_ptr + row * N + slot, j, mask=j < N)


@triton.jit
def _sort_buckets_kernel(expiry_ptr, by_arrival_ptr, order_ptr, N, BUCKET: tl.constexpr):
    bucket, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    slot = bucket * BUCKET + tl.arange(0, BUCKET)
    j = tl.load(by_arrival_ptr + row * N + slot, mask=slot < N, other=0)
    expiry = tl.load(expiry_ptr + row * N + j, mask=slot < N, other=0)
    # Descending: those that never live (0) near the end, slots past the last key (-1) behind them.
    rank = tl.where(slot < N, tl.where(expiry > j, expiry, 0), -1)
    packed = tl.sort((rank.to(tl.int64) << 32) | j.to(tl.int64), descending=True)
    tl.store(order_ptr + row * N + slot, (packed & 0xFFFFFFFF).to(tl.int32), mask=slot < N)
