"""Hopper GPUs: one group of warps fetches the keys of a list into a ring in shared memory, others attend over them.

Written in Gluon, Triton's lower level, because there the warps of a program can be given different work: fetching rows
by index costs as many instructions as softmax does, and in the plain Triton kernels every warp pays for both, one after
the other. Programs are persistent, so the next list is fetched while the last results are written.

A ring's stage is full (the producer announced a tile) or free (both consumers released it); tile ``n`` since the
program began lies in stage ``n % STAGES``, and the barriers' phases follow from ``n`` too.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from dma_lab.kernels.interval.arguments import needs_wide_offsets
from dma_lab.kernels.interval.key_lists import TILE, KeyLists
from dma_lab.kernels.interval.tiling import LIST_ROWS, heads_together
from dma_lab.kernels.sizes import cdiv

KEYS = gl.constexpr(TILE)
WARPGROUP_ROWS = gl.constexpr(LIST_ROWS // 2)
"""Rows of a block (queries times the heads that share them) that each of two warp groups attends for."""
load_async = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared  # before Triton 3.8
thread_barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # in Triton 3.6
LAG = gl.constexpr(1)
"""Tiles under way when the one before them is announced."""
PRODUCER_REGISTERS = gl.constexpr(40)
CONSUMER_REGISTERS = gl.constexpr(232)  # two groups of them, and the producer's: 504 of the 512 there are per lane


def hopper_supports(capability: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> str | None:
    """Why the kernels of this room do not take the inputs, or None where they do. Those of ``triton/`` take them all.

    ``capability`` is the compute capability of the tensors' device, (0, 0) where that is no CUDA device.
    """
    if capability != (9, 0):
        return "they need a GPU of compute capability 9.0"
    if q.dtype != torch.bfloat16:
        return f"they take bfloat16, not {q.dtype}"
    D, E = q.shape[-1], v.shape[-1]
    if D not in (64, 128) or E not in (64, 128):
        return f"they take head dims 64 and 128, not {D} and {E}"
    # Rows are fetched 16 bytes at a time, and the compiler must know that it may.
    for tensor in (q, k, v, *others):
        if tensor.data_ptr() % 16 or any(stride % 16 for stride in tensor.stride()[:3]):
            return "a tensor's rows do not begin at multiples of 16"
    return None


class Schedule(NamedTuple):
    """How a launch cuts (B, H, N) queries into items: a block of queries of the heads that share a list."""

    H: int
    group_size: int
    N: int
    capacity: int
    blocks: int
    head_groups: int
    items: int
    abreast: int
    """Groups of heads whose blocks go side by side."""
    scale: float


class RingConfig(NamedTuple):
    """What a kernel that goes by lists is compiled for."""

    D: int
    E: int
    GROUP: int
    """Query heads that share a tile."""
    QUERIES: int
    STAGES: int
    WIDE: bool


def schedule(
    q: Tensor, k: Tensor, v: Tensor, lists: KeyLists, scale: float, stages: int
) -> tuple[int, Schedule, RingConfig]:
    """Programs, sizes and configuration of a launch."""
    B, H, N, D = q.shape
    group = heads_together(H // k.shape[1])
    queries = LIST_ROWS // group
    blocks, head_groups = cdiv(N, queries), B * H // group
    items, capacity = blocks * head_groups, lists.blocks.index_ris.shape[2]
    sizes = Schedule(H, H // k.shape[1], N, capacity, blocks, head_groups, items, max(1, 512 // blocks), scale)
    config = RingConfig(D, v.shape[-1], group, queries, stages, needs_wide_offsets(k, v))
    return min(items, torch.cuda.get_device_properties(q.device).multi_processor_count), sizes, config


@gluon.jit
def place(item, sizes, C: gl.constexpr):
    """Of an item: its block of queries, batch entry, first query head, key/value head, and list.

    The last queries first: blocks near the start have few keys, and end the launch with little to wait for. Where a
    head has few blocks, ``abreast`` of them go side by side, so that all of them end so; not more, because blocks that
    run together should find each other's keys in the L2 cache.
    """
    first = item // (sizes.blocks * sizes.abreast) * sizes.abreast
    width = gl.minimum(sizes.head_groups - first, sizes.abreast)
    within = item - first * sizes.blocks
    head0 = (first + within % width) * C.GROUP
    b, h0 = (head0 // sizes.H).to(gl.int64), head0 % sizes.H
    query_block, kv_head = sizes.blocks - 1 - within // width, h0 // sizes.group_size
    return query_block, b, h0, kv_head, (b * (sizes.H // sizes.group_size) + kv_head) * sizes.blocks + query_block


class Ring(NamedTuple):
    """Shared memory of STAGES tiles of keys, values, spans and biases, and the barriers that say full and free."""

    k: gl.shared_memory_descriptor
    v: gl.shared_memory_descriptor
    span: gl.shared_memory_descriptor
    bias: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    free: gl.shared_memory_descriptor


@gluon.jit
def new_barriers(STAGES: gl.constexpr):
    """Full, announced by one producer, and free, released by two consumers, of every stage."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(free.index(stage), count=2)
    return full, free


@gluon.jit
def new_ring(dtype: gl.constexpr, C: gl.constexpr):
    matrix: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    full, free = new_barriers(C.STAGES)
    return Ring(
        gl.allocate_shared_memory(dtype, [C.STAGES, KEYS, C.D], matrix),
        gl.allocate_shared_memory(dtype, [C.STAGES, KEYS, C.E], matrix),
        gl.allocate_shared_memory(gl.int32, [C.STAGES, KEYS], line),
        gl.allocate_shared_memory(gl.float32, [C.STAGES, KEYS], line),
        full,
        free,
    )


@gluon.jit
def acquire(ring, n, STAGES: gl.constexpr):
    """Producer: wait until tile ``n``'s stage is free."""
    mbarrier.wait(ring.free.index(n % STAGES), ((n // STAGES) & 1) ^ 1)


@gluon.jit
def announce(ring, n, STAGES: gl.constexpr):
    """Producer: tile ``n`` has arrived. The fence shows what copies wrote to the matrix units, which read past the
    usual order."""
    fence_async_shared()
    thread_barrier()
    mbarrier.arrive(ring.full.index(n % STAGES), count=1)


@gluon.jit
def await_tile(ring, n, STAGES: gl.constexpr):
    """Consumer: wait for tile ``n``; its stage."""
    stage = n % STAGES
    mbarrier.wait(ring.full.index(stage), (n // STAGES) & 1)
    return stage


@gluon.jit
def release(ring, stage):
    """Consumer: done with the tile in ``stage``."""
    mbarrier.arrive(ring.free.index(stage), count=1)


@gluon.jit
def produce_lists(k, v, lists, sizes, ring, C: gl.constexpr):
    """The producer's warps: the lists of this program's items, tile after tile, as fast as the ring is emptied."""
    k_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // C.D, C.D // 8], [4, 1], [1, 0])
    v_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // C.E, C.E // 8], [4, 1], [1, 0])
    slot_s = gl.arange(0, KEYS, layout=gl.SliceLayout(1, k_layout))
    column_d = gl.arange(0, C.D, layout=gl.SliceLayout(0, k_layout))
    column_e = gl.arange(0, C.E, layout=gl.SliceLayout(0, v_layout))
    line_s = gl.arange(0, KEYS, layout=gl.BlockedLayout([1], [32], [4], [0]))
    n = 0
    for item in range(gl.program_id(0), sizes.items, gl.num_programs(0)):
        _query_block, b, _h0, kv_head, block = place(item, sizes, C)
        k_head = k.ptr + b * k.b + kv_head.to(gl.int64) * k.h
        v_head = v.ptr + b * v.b + kv_head.to(gl.int64) * v.h
        tiles = gl.maximum(gl.cdiv(gl.load(lists.length_ri + block), KEYS), 1)
        j_s = gl.load(lists.index_ris + block * sizes.capacity + slot_s)
        for tile in range(tiles):
            stage = n % C.STAGES
            next_tile = gl.minimum(tile + 1, tiles - 1)
            next_j_s = gl.load(lists.index_ris + block * sizes.capacity + next_tile * KEYS + slot_s)
            j_of_v_s = gl.convert_layout(j_s, gl.SliceLayout(1, v_layout))
            if C.WIDE:
                row_s, row_of_v_s = j_s.to(gl.int64) * k.n, j_of_v_s.to(gl.int64) * v.n
            else:  # half the integer instructions
                row_s, row_of_v_s = j_s * k.n, j_of_v_s * v.n
            listed_s = block * sizes.capacity + tile * KEYS + line_s
            acquire(ring, n, C.STAGES)
            load_async(ring.k.index(stage), k_head + row_s[:, None] + column_d[None, :])
            load_async(ring.v.index(stage), v_head + row_of_v_s[:, None] + column_e[None, :])
            load_async(ring.span.index(stage), lists.span_ris + listed_s)
            if lists.bias_ris is not None:
                load_async(ring.bias.index(stage), lists.bias_ris + listed_s)
            async_copy.commit_group()
            async_copy.wait_group(LAG)
            if tile >= LAG:
                announce(ring, n - LAG, C.STAGES)
            j_s = next_j_s
            n += 1
        async_copy.wait_group(0)
        for tile in range(n - gl.minimum(tiles, LAG), n):
            announce(ring, tile, C.STAGES)


@gluon.jit
def weights_of_tile(products_as, flag, ring, stage, query_a, subtract_a, scale_log2, HAS_BIAS: gl.constexpr):
    """2 ** (scale * q . k + listed bias - subtract) of a tile, 0 where the key does not live for the query.

    ``flag`` is the tile's entry of ``mask_rif``; ``subtract_a`` may be None.
    """
    of_keys: gl.constexpr = gl.SliceLayout(0, products_as.type.layout)
    logits_as = products_as * scale_log2
    if HAS_BIAS:
        logits_as += ring.bias.index(stage).load(of_keys)[None, :]
    if subtract_a is not None:
        logits_as -= subtract_a[:, None]
    if flag != 0:
        span_s = ring.span.index(stage).load(of_keys)
        logits_as = gl.where(query_a[:, None] < (span_s >> 16)[None, :], logits_as, float("-inf"))
        if flag > 1:
            logits_as = gl.where((span_s & 0xFFFF)[None, :] <= query_a[:, None], logits_as, float("-inf"))
    return gl.exp2(logits_as)


@gluon.jit
def sum_within_threads(tile):
    """Four sums of every row of a product's tile, one for each of the threads that hold the row: threads need to meet
    only when all tiles are summed."""
    return gl.sum(gl.sum(gl.reshape(tile, [tile.shape[0], tile.shape[1] // 8, 4, 2]), 3), 1)
