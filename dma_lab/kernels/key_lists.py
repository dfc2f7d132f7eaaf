"""Which keys a kernel must read: lists of live keys a block of queries.

Triton kernels. Compactions by prefix sums, so every result is the same on every run. Nothing here is larger than
N / block times the number of keys alive at once.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64  # keys of a list that share one flag
LOG2_E = tl.constexpr(1.4426950408889634)
_SPAN = 1024  # queries that share a first, coarse list
CHUNK = 2048  # keys that a program compacts at a time
_BLOCK_CHUNK = 512  # the same, of a coarse list: few hold many more keys than the window


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
    _count_ever_live_kernel[(chunks, rows)](expiry, lists.ever_rc, N, CHUNK)
    _by_arrival_kernel[(chunks, rows)](
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
    _coarse_lists_kernel[(spans, rows)](
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
        num_warps=8,
    )
    _block_lists_kernel[(triton.cdiv(N, block), rows)](
        *coarse,
        *lists.of_blocks,
        N,
        coarse_capacity,
        lists.index_rbs.shape[2],
        BLOCK=block,
        TILE=TILE,
        SPAN=_SPAN,
        CHUNK=_BLOCK_CHUNK,
        HAS_BIAS=has_bias,
        num_warps=4,
    )
    return lists


@triton.jit
def _count_ever_live_kernel(expiry_ptr, ever_ptr, N, CHUNK: tl.constexpr):
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    j = chunk * CHUNK + tl.arange(0, CHUNK)
    ever = tl.load(expiry_ptr + row * N + j, mask=j < N, other=0) > j
    tl.store(ever_ptr + row * tl.num_programs(0) + chunk, tl.sum(ever.to(tl.int32), 0))


@triton.jit
def _by_arrival_kernel(
    expiry_ptr,
    bias_ptr,
    ever_ptr,
    index_ptr,
    listed_expiry_ptr,
    listed_bias_ptr,
    N,
    CHUNK: tl.constexpr,
    MAX_CHUNKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Keys that ever live in order of arrival, with their expiries and biases times log2(e); the others behind them."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    chunks = tl.num_programs(0)
    c = tl.arange(0, MAX_CHUNKS)
    ever_c = tl.load(ever_ptr + row * chunks + c, mask=c < chunks, other=0)
    ever_before = tl.sum(tl.where(c < chunk, ever_c, 0), 0)
    never_from = tl.sum(ever_c, 0) + chunk * CHUNK - ever_before
    i = tl.arange(0, CHUNK)
    j = chunk * CHUNK + i
    expiry = tl.load(expiry_ptr + row * N + j, mask=j < N, other=0)
    ever = (expiry > j).to(tl.int32)
    ever_rank = tl.cumsum(ever, 0) - ever
    place = row * N + tl.where(ever != 0, ever_before + ever_rank, never_from + i - ever_rank)
    tl.store(index_ptr + place, j, mask=j < N)
    tl.store(listed_expiry_ptr + place, expiry, mask=ever != 0)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + row * N + j, mask=ever != 0, other=0.0).to(tl.float32)
        tl.store(listed_bias_ptr + place, bias * LOG2_E, mask=ever != 0)


@triton.jit
def _coarse_lists_kernel(
    arrival_ptr,
    arrival_expiry_ptr,
    arrival_bias_ptr,
    ever_ptr,
    list_ptr,
    listed_expiry_ptr,
    listed_bias_ptr,
    total_ptr,
    reference_ptr,
    N,
    capacity,
    chunks,
    SPAN: tl.constexpr,
    CHUNK: tl.constexpr,
    MAX_CHUNKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Keys that live for any query of a span, and the largest bias of those alive when it opens."""
    span, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    t0 = span * SPAN
    t1 = tl.minimum(t0 + SPAN, N)
    slot_of_span = row * tl.num_programs(0) + span
    c = tl.arange(0, MAX_CHUNKS)
    arrived = tl.sum(tl.load(ever_ptr + row * chunks + c, mask=(c < chunks) & (c * CHUNK < t1), other=0), 0)
    total = 0
    reference = float("-inf")
    for start in range(0, arrived, CHUNK):
        i = start + tl.arange(0, CHUNK)
        j = tl.load(arrival_ptr + row * N + i, mask=i < arrived, other=N)
        expiry = tl.load(arrival_expiry_ptr + row * N + i, mask=i < arrived, other=0)
        live = ((expiry > t0) & (j < t1)).to(tl.int32)
        slot = total + tl.cumsum(live, 0) - live
        store = (live != 0) & (slot < capacity)
        place = slot_of_span * capacity + slot
        tl.store(list_ptr + place, j, mask=store)
        tl.store(listed_expiry_ptr + place, expiry, mask=store)
        if HAS_BIAS:
            bias = tl.load(arrival_bias_ptr + row * N + i, mask=store, other=float("-inf"))
            tl.store(listed_bias_ptr + place, bias, mask=store)
            reference = tl.maximum(reference, tl.max(tl.where(j <= t0, bias, float("-inf")), 0))
        total += tl.sum(live, 0)
    tl.store(total_ptr + slot_of_span, total)
    tl.store(reference_ptr + slot_of_span, tl.where(reference > float("-inf"), reference, 0.0))


@triton.jit
def _block_lists_kernel(
    coarse_ptr,
    coarse_expiry_ptr,
    coarse_bias_ptr,
    coarse_total_ptr,
    coarse_reference_ptr,
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
    reference = 0.0
    if HAS_BIAS:
        coarse_bias_ptr += slot_of_span * coarse_capacity
        list_bias_ptr += slot_of_block * capacity
        reference = tl.load(coarse_reference_ptr + slot_of_span)
        tl.store(reference_ptr + slot_of_block, reference)
    total = 0
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
            bias = tl.load(coarse_bias_ptr + i, mask=i < in_reach, other=0.0)
            tl.store(list_bias_ptr + slot, bias - reference, mask=store)
        total += tl.sum(live, 0)
    tl.debug_barrier()  # the spans are read again
    listed = tl.minimum(total, capacity)
    filled = tl.cdiv(tl.maximum(listed, 1), TILE) * TILE
    filler = listed + tl.arange(0, TILE)
    tl.store(list_ptr + filler, tl.zeros_like(filler), mask=filler < filled)
    tl.store(span_ptr + filler, tl.zeros_like(filler), mask=filler < filled)
    if HAS_BIAS:
        tl.store(list_bias_ptr + filler, tl.zeros((TILE,), tl.float32), mask=filler < filled)
    TILES: tl.constexpr = CHUNK // TILE
    for start in range(0, filled, CHUNK):
        i = start + tl.arange(0, CHUNK)
        span = tl.load(span_ptr + i, mask=i < listed, other=0)
        asks = tl.where(span == BLOCK << 16, 0, tl.where((i < listed) & ((span & 0xFFFF) == 0), 1, 2))
        tile = start // TILE + tl.arange(0, TILES)
        tl.store(mask_ptr + tile, tl.max(tl.reshape(asks, (TILES, TILE)), 1), mask=tile < capacity // TILE)
    fits = (total <= capacity) & (coarse_total <= coarse_capacity)
    tl.store(total_ptr + slot_of_block, tl.where(fits, total, -1))
