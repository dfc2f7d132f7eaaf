"""The compactions that make key lists, for Triton: see ``key_lists.build_key_lists``.

Loops over listed keys ask for what comes next before they store what came, so that loads do not wait for stores.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)


class KeyList(NamedTuple):
    """Keys with what is known of them, int32, int32 and float32, (…, capacity)."""

    key: Tensor
    expiry: Tensor
    bias: Tensor | None
    """Times log2(e)."""


class SpanConfig(NamedTuple):
    """What the kernels that go by chunks of all keys are compiled for."""

    SPAN: int
    """Queries that share a coarse list."""
    CHUNK: int
    """Keys at a time."""
    MAX_CHUNKS: int
    """That a row may have: a power of two."""


class BlockListSizes(NamedTuple):
    """Of the lists of blocks, known at launch."""

    N: int
    coarse_capacity: int
    capacity: int


class BlockListConfig(NamedTuple):
    """What the kernel that makes the lists of blocks is compiled for."""

    BLOCK: int
    TILE: int
    SPAN: int
    CHUNK: int
    """Keys of a coarse list at a time."""
    MAX_TILES: int
    """That a list may have: a power of two."""


@triton.jit
def count_ever_live_kernel(expiry_ptr, ever_ptr, N, CHUNK: tl.constexpr):
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    j_s = chunk * CHUNK + tl.arange(0, CHUNK)
    ever_s = tl.load(expiry_ptr + row * N + j_s, mask=j_s < N, other=0) > j_s
    tl.store(ever_ptr + row * tl.num_programs(0) + chunk, tl.sum(ever_s.to(tl.int32), 0))


@triton.jit
def by_arrival_kernel(expiry_ptr, bias_ptr, ever_ptr, arrivals, N, C: tl.constexpr):
    """Keys that ever live in order of arrival, with their expiries and biases times log2(e); the others behind them."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    chunks = tl.num_programs(0)
    x = tl.arange(0, C.MAX_CHUNKS)
    ever_x = tl.load(ever_ptr + row * chunks + x, mask=x < chunks, other=0)
    ever_before = tl.sum(tl.where(x < chunk, ever_x, 0), 0)
    never_from = tl.sum(ever_x, 0) + chunk * C.CHUNK - ever_before
    place_s = tl.arange(0, C.CHUNK)
    j_s = chunk * C.CHUNK + place_s
    expiry_s = tl.load(expiry_ptr + row * N + j_s, mask=j_s < N, other=0)
    ever_s = (expiry_s > j_s).to(tl.int32)
    ever_rank_s = tl.cumsum(ever_s, 0) - ever_s
    slot_s = row * N + tl.where(ever_s != 0, ever_before + ever_rank_s, never_from + place_s - ever_rank_s)
    tl.store(arrivals.key + slot_s, j_s, mask=j_s < N)
    tl.store(arrivals.expiry + slot_s, expiry_s, mask=ever_s != 0)
    if bias_ptr is not None:
        bias_s = tl.load(bias_ptr + row * N + j_s, mask=ever_s != 0, other=0.0).to(tl.float32)
        tl.store(arrivals.bias + slot_s, bias_s * LOG2_E, mask=ever_s != 0)


@triton.jit
def _listed(keys, at, start, end, N, CHUNK: tl.constexpr):
    """Keys, expiries and biases at places [start, start + CHUNK) of the list that begins ``at``; N, 0 and 0 from
    ``end`` on."""
    slot_s = start + tl.arange(0, CHUNK)
    j_s = tl.load(keys.key + at + slot_s, mask=slot_s < end, other=N)
    expiry_s = tl.load(keys.expiry + at + slot_s, mask=slot_s < end, other=0)
    bias_s = tl.zeros((CHUNK,), tl.float32)
    if keys.bias is not None:
        bias_s = tl.load(keys.bias + at + slot_s, mask=slot_s < end, other=0.0)
    return j_s, expiry_s, bias_s


@triton.jit
def coarse_lists_kernel(
    arrivals, ever_ptr, coarse, length_ptr, reference_ptr, N, capacity, chunks, C: tl.constexpr
):  # fmt: skip
    """Keys that live for any query of a span, and the largest bias of those alive when it opens (-inf of none)."""
    CHUNK: tl.constexpr = C.CHUNK
    span, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    t0 = span * C.SPAN
    t1 = tl.minimum(t0 + C.SPAN, N)
    of_span = row * tl.num_programs(0) + span
    x = tl.arange(0, C.MAX_CHUNKS)
    arrived = tl.sum(tl.load(ever_ptr + row * chunks + x, mask=(x < chunks) & (x * CHUNK < t1), other=0), 0)
    length = 0
    largest_s = tl.full((CHUNK,), float("-inf"), tl.float32)
    next_j_s, next_expiry_s, next_bias_s = _listed(arrivals, row * N, 0, arrived, N, CHUNK)
    for start in range(0, arrived, CHUNK):
        j_s, expiry_s, bias_s = next_j_s, next_expiry_s, next_bias_s
        next_j_s, next_expiry_s, next_bias_s = _listed(arrivals, row * N, start + CHUNK, arrived, N, CHUNK)
        live_s = ((expiry_s > t0) & (j_s < t1)).to(tl.int32)
        slot_s = length + tl.cumsum(live_s, 0) - live_s
        stored_s = (live_s != 0) & (slot_s < capacity)
        tl.store(coarse.key + of_span * capacity + slot_s, j_s, mask=stored_s)
        tl.store(coarse.expiry + of_span * capacity + slot_s, expiry_s, mask=stored_s)
        if coarse.bias is not None:
            tl.store(coarse.bias + of_span * capacity + slot_s, bias_s, mask=stored_s)
            largest_s = tl.maximum(largest_s, tl.where((live_s != 0) & (j_s <= t0), bias_s, float("-inf")))
        length += tl.sum(live_s, 0)
    tl.store(length_ptr + of_span, length)
    tl.store(reference_ptr + of_span, tl.max(largest_s, 0))


@triton.jit
def block_lists_kernel(
    expiry_ptr, bias_ptr, coarse, coarse_length_ptr, coarse_reference_ptr, lists, sizes, C: tl.constexpr
):  # fmt: skip
    """Out of a span's keys those that live for a block of its queries, in the same order."""
    TILE: tl.constexpr = C.TILE
    CHUNK: tl.constexpr = C.CHUNK
    MAX_TILES: tl.constexpr = C.MAX_TILES
    N, coarse_capacity, capacity = sizes.N, sizes.coarse_capacity, sizes.capacity
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    t0 = block * C.BLOCK
    t1 = tl.minimum(t0 + C.BLOCK, N)
    of_span = row * tl.cdiv(N, C.SPAN) + t0 // C.SPAN
    of_block = row * tl.num_programs(0) + block
    in_coarse, first_slot = of_span * coarse_capacity, of_block * capacity
    flags = lists.mask_rif + of_block * (capacity // TILE)
    coarse_length = tl.load(coarse_length_ptr + of_span)
    in_reach = tl.minimum(coarse_length, coarse_capacity)
    reference = 0.0
    if coarse.bias is not None:
        # Keys that arrived since the span opened, of those that live: a slope makes each one's bias larger.
        since_s = t0 // C.SPAN * C.SPAN + tl.arange(0, C.SPAN)
        known_s = since_s <= t0
        open_s = tl.load(expiry_ptr + row * N + since_s, mask=known_s, other=0) > t0
        since_bias_s = tl.load(bias_ptr + row * N + since_s, mask=known_s, other=0.0).to(tl.float32) * LOG2_E
        largest = tl.max(tl.where(open_s, since_bias_s, float("-inf")), 0)
        reference = tl.maximum(tl.load(coarse_reference_ptr + of_span), largest)
        reference = tl.where(reference > float("-inf"), reference, 0.0)
        tl.store(lists.reference_ri + of_block, reference)
    tile = tl.arange(0, MAX_TILES)
    tl.store(flags + tile, tl.zeros_like(tile), mask=tile < capacity // TILE)
    tl.debug_barrier()
    # The keys that live for the block, with the queries that see them; a tile in which one leaves is flagged 1.
    length = 0
    open_with_block_s = tl.zeros((CHUNK,), tl.int32)
    next_j_s, next_expiry_s, next_bias_s = _listed(coarse, in_coarse, 0, in_reach, N, CHUNK)
    for start in range(0, in_reach, CHUNK):
        j_s, expiry_s, bias_s = next_j_s, next_expiry_s, next_bias_s
        next_j_s, next_expiry_s, next_bias_s = _listed(coarse, in_coarse, start + CHUNK, in_reach, N, CHUNK)
        live_s = (j_s < t1) & (expiry_s > t0)
        open_with_block_s += (live_s & (j_s <= t0)).to(tl.int32)
        slot_s = length + tl.cumsum(live_s.to(tl.int32), 0) - live_s.to(tl.int32)
        stored_s = live_s & (slot_s < capacity)
        tl.store(lists.index_ris + first_slot + slot_s, j_s, mask=stored_s)
        seen_from_s, seen_to_s = tl.maximum(j_s - t0, 0), tl.where(expiry_s >= t1, C.BLOCK, expiry_s - t0)
        tl.store(lists.span_ris + first_slot + slot_s, seen_from_s | (seen_to_s << 16), mask=stored_s)
        tl.store(flags + slot_s // TILE, tl.full((CHUNK,), 1, tl.int32), mask=stored_s & (seen_to_s < C.BLOCK))
        if coarse.bias is not None:
            tl.store(lists.bias_ris + first_slot + slot_s, bias_s - reference, mask=stored_s)
        length += tl.sum(live_s.to(tl.int32), 0)
    # The last tile is filled up with keys that no query sees.
    listed = tl.minimum(length, capacity)
    filled = tl.cdiv(tl.maximum(listed, 1), TILE) * TILE
    filler = listed + tl.arange(0, TILE)
    tl.store(lists.index_ris + first_slot + filler, tl.zeros_like(filler), mask=filler < filled)
    tl.store(lists.span_ris + first_slot + filler, tl.zeros_like(filler), mask=filler < filled)
    if coarse.bias is not None:
        tl.store(lists.bias_ris + first_slot + filler, tl.zeros((TILE,), tl.float32), mask=filler < filled)
    tl.debug_barrier()  # over the ones
    later_from = tl.minimum(tl.sum(open_with_block_s, 0), capacity) // TILE
    tl.store(flags + tile, tl.full((MAX_TILES,), 2, tl.int32), mask=(tile >= later_from) & (tile < filled // TILE))
    fits = (length <= capacity) & (coarse_length <= coarse_capacity)
    tl.store(lists.length_ri + of_block, tl.where(fits, length, -1))
