"""The compactions that make key lists, for Triton: see ``key_lists.build_key_lists``.

Loops over listed keys ask for what comes next before they store what came, so that loads do not wait for stores.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def count_ever_live_kernel(expiry_ptr, ever_ptr, N, CHUNK: tl.constexpr):
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    j = chunk * CHUNK + tl.arange(0, CHUNK)
    ever = tl.load(expiry_ptr + row * N + j, mask=j < N, other=0) > j
    tl.store(ever_ptr + row * tl.num_programs(0) + chunk, tl.sum(ever.to(tl.int32), 0))


@triton.jit
def by_arrival_kernel(
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
def _listed(index_ptr, expiry_ptr, bias_ptr, start, end, N, CHUNK: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Keys, expiries and biases at places [start, start + CHUNK) of a list; N, 0 and 0 from ``end`` on."""
    i = start + tl.arange(0, CHUNK)
    j = tl.load(index_ptr + i, mask=i < end, other=N)
    expiry = tl.load(expiry_ptr + i, mask=i < end, other=0)
    bias = tl.zeros((CHUNK,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + i, mask=i < end, other=0.0)
    return j, expiry, bias


@triton.jit
def coarse_lists_kernel(
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
    arrival_ptr += row * N
    arrival_expiry_ptr += row * N
    if HAS_BIAS:
        arrival_bias_ptr += row * N
    total = 0
    largest = tl.full((CHUNK,), float("-inf"), tl.float32)
    next_j, next_expiry, next_bias = _listed(
        arrival_ptr, arrival_expiry_ptr, arrival_bias_ptr, 0, arrived, N, CHUNK, HAS_BIAS
    )
    for start in range(0, arrived, CHUNK):
        j, expiry, bias = next_j, next_expiry, next_bias
        next_j, next_expiry, next_bias = _listed(
            arrival_ptr, arrival_expiry_ptr, arrival_bias_ptr, start + CHUNK, arrived, N, CHUNK, HAS_BIAS
        )
        live = ((expiry > t0) & (j < t1)).to(tl.int32)
        slot = total + tl.cumsum(live, 0) - live
        store = (live != 0) & (slot < capacity)
        place = slot_of_span * capacity + slot
        tl.store(list_ptr + place, j, mask=store)
        tl.store(listed_expiry_ptr + place, expiry, mask=store)
        if HAS_BIAS:
            tl.store(listed_bias_ptr + place, bias, mask=store)
            largest = tl.maximum(largest, tl.where((live != 0) & (j <= t0), bias, float("-inf")))
        total += tl.sum(live, 0)
    tl.store(total_ptr + slot_of_span, total)
    reference = tl.max(largest, 0)
    tl.store(reference_ptr + slot_of_span, tl.where(reference > float("-inf"), reference, 0.0))


@triton.jit
def block_lists_kernel(
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
    MAX_TILES: tl.constexpr,
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
    tile = tl.arange(0, MAX_TILES)
    tl.store(mask_ptr + tile, tl.zeros_like(tile), mask=tile < capacity // TILE)
    tl.debug_barrier()
    total = 0
    open_with_block = tl.zeros((CHUNK,), tl.int32)
    next_j, next_expiry, next_bias = _listed(
        coarse_ptr, coarse_expiry_ptr, coarse_bias_ptr, 0, in_reach, N, CHUNK, HAS_BIAS
    )
    for start in range(0, in_reach, CHUNK):
        j, expiry, bias = next_j, next_expiry, next_bias
        next_j, next_expiry, next_bias = _listed(
            coarse_ptr, coarse_expiry_ptr, coarse_bias_ptr, start + CHUNK, in_reach, N, CHUNK, HAS_BIAS
        )
        live = (j < t1) & (expiry > t0)
        open_with_block += (live & (j <= t0)).to(tl.int32)
        slot = total + tl.cumsum(live.to(tl.int32), 0) - live.to(tl.int32)
        store = live & (slot < capacity)
        tl.store(list_ptr + slot, j, mask=store)
        first, end = tl.maximum(j - t0, 0), tl.where(expiry >= t1, BLOCK, expiry - t0)
        tl.store(span_ptr + slot, first | (end << 16), mask=store)
        tl.store(mask_ptr + slot // TILE, tl.full((CHUNK,), 1, tl.int32), mask=store & (end < BLOCK))
        if HAS_BIAS:
            tl.store(list_bias_ptr + slot, bias - reference, mask=store)
        total += tl.sum(live.to(tl.int32), 0)
    listed = tl.minimum(total, capacity)
    filled = tl.cdiv(tl.maximum(listed, 1), TILE) * TILE
    filler = listed + tl.arange(0, TILE)
    tl.store(list_ptr + filler, tl.zeros_like(filler), mask=filler < filled)
    tl.store(span_ptr + filler, tl.zeros_like(filler), mask=filler < filled)
    if HAS_BIAS:
        tl.store(list_bias_ptr + filler, tl.zeros((TILE,), tl.float32), mask=filler < filled)
    tl.debug_barrier()  # over the ones
    later_from = tl.minimum(tl.sum(open_with_block, 0), capacity) // TILE
    tl.store(mask_ptr + tile, tl.full((MAX_TILES,), 2, tl.int32), mask=(tile >= later_from) & (tile < filled // TILE))
    fits = (total <= capacity) & (coarse_total <= coarse_capacity)
    tl.store(total_ptr + slot_of_block, tl.where(fits, total, -1))
