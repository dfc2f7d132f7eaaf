"""Hopper GPUs: one group of warps fetches the keys of a list into a ring in shared memory, others attend over them.

Written in Gluon, Triton's lower level, because there the warps of a program can be given different work: fetching rows
by index costs as many instructions as softmax does, and in the plain Triton kernels every warp pays for both, one after
the other. Programs are persistent, so the next list is fetched while the last results are written.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from dma_lab.kernels.key_lists import TILE
from dma_lab.kernels.tiling import LIST_ROWS, heads_together

KEYS = gl.constexpr(TILE)
WARPGROUP_ROWS = gl.constexpr(LIST_ROWS // 2)
"""Rows of a block (queries times the heads that share them) that each of two warp groups attends for."""
load_async = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared  # before Triton 3.8
thread_barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # in Triton 3.6
LAG = gl.constexpr(1)
"""Tiles under way when the one before them is announced."""
FETCHER_REGISTERS = gl.constexpr(40)
ATTENDER_REGISTERS = gl.constexpr(232)  # two groups of them, and the fetcher's: 504 of the 512 there are a lane


def hopper_suits(q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> bool:
    """Whether the kernels of this room's ``hopper`` files take the inputs; what they do not, the Triton kernels do."""
    if q.device.type != "cuda" or torch.cuda.get_device_capability(q.device) != (9, 0):
        return False
    if q.dtype != torch.bfloat16 or q.shape[-1] not in (64, 128) or v.shape[-1] not in (64, 128):
        return False
    # Rows are fetched 16 bytes at a time, and the compiler must know that it may.
    return all(
        tensor.data_ptr() % 16 == 0 and all(stride % 16 == 0 for stride in tensor.stride()[:3])
        for tensor in (q, k, v, *others)
    )


class Work:
    """How a launch cuts (B, H, N) queries into items: a block of queries of the heads that share a list."""

    def __init__(self, q: Tensor, k: Tensor) -> None:
        B, H, N, _ = q.shape
        self.group = heads_together(H // k.shape[1])
        self.queries = LIST_ROWS // self.group
        self.blocks = triton.cdiv(N, self.queries)
        self.head_groups = B * H // self.group
        self.items = self.blocks * self.head_groups
        self.abreast = max(1, 512 // self.blocks)
        self.programs = min(self.items, torch.cuda.get_device_properties(q.device).multi_processor_count)


@gluon.jit
def place(item, blocks, head_groups, abreast, H, heads_a_key, GROUP: gl.constexpr):
    """Of an item: its block of queries, batch entry, first query head, and key/value head.

    The last queries first: blocks near the start have few keys, and end the launch with little to wait for. Where a
    head has few blocks, ``abreast`` of them go side by side, so that all of them end so; not more, because blocks that
    run together should find each other's keys in the L2 cache.
    """
    first = item // (blocks * abreast) * abreast
    width = gl.minimum(head_groups - first, abreast)
    within = item - first * blocks
    head0 = (first + within % width) * GROUP
    b, h0 = (head0 // H).to(gl.int64), head0 % H
    return blocks - 1 - within // width, b, h0, h0 // heads_a_key


@gluon.jit
def new_ring(k_ptr, v_ptr, D: gl.constexpr, D_V: gl.constexpr, STAGES: gl.constexpr):
    """Shared memory of STAGES tiles of keys, values, spans and biases, and the barriers that say full and free."""
    matrix: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    k_ring = gl.allocate_shared_memory(k_ptr.dtype.element_ty, [STAGES, KEYS, D], matrix)
    v_ring = gl.allocate_shared_memory(v_ptr.dtype.element_ty, [STAGES, KEYS, D_V], matrix)
    span_ring = gl.allocate_shared_memory(gl.int32, [STAGES, KEYS], line)
    bias_ring = gl.allocate_shared_memory(gl.float32, [STAGES, KEYS], line)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(free.index(stage), count=2)
    return k_ring, v_ring, span_ring, bias_ring, full, free


@gluon.jit
def fetch_lists(
    pointers,
    strides,
    sizes,
    ring,
    D: gl.constexpr,
    D_V: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    WIDE: gl.constexpr,
):
    """The fetching warps: the lists of this program's items, tile after tile, as fast as the ring is emptied."""
    k_ptr, v_ptr, list_ptr, span_ptr, list_bias_ptr, total_ptr = pointers
    k_b, k_h, k_n, v_b, v_h, v_n = strides
    H, heads_a_key, _N, capacity, items, blocks, head_groups, abreast = sizes
    k_ring, v_ring, span_ring, bias_ring, full, free = ring
    k_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    v_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D_V, D_V // 8], [4, 1], [1, 0])
    slot = gl.arange(0, KEYS, layout=gl.SliceLayout(1, k_layout))
    column = gl.arange(0, D, layout=gl.SliceLayout(0, k_layout))
    column_v = gl.arange(0, D_V, layout=gl.SliceLayout(0, v_layout))
    line_slot = gl.arange(0, KEYS, layout=gl.BlockedLayout([1], [32], [4], [0]))
    n = 0  # tiles since the program began: their stage and the barriers' phases follow from it
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        query_block, b, _h0, kv_head = place(item, blocks, head_groups, abreast, H, heads_a_key, GROUP)
        block = (b * (H // heads_a_key) + kv_head) * blocks + query_block
        k_head = k_ptr + b * k_b + kv_head.to(gl.int64) * k_h
        v_head = v_ptr + b * v_b + kv_head.to(gl.int64) * v_h
        tiles = gl.maximum(gl.cdiv(gl.load(total_ptr + block), KEYS), 1)
        j = gl.load(list_ptr + block * capacity + slot)
        for tile in range(tiles):
            stage = n % STAGES
            next_j = gl.load(list_ptr + block * capacity + gl.minimum(tile + 1, tiles - 1) * KEYS + slot)
            j_v = gl.convert_layout(j, gl.SliceLayout(1, v_layout))
            if WIDE:
                row, row_v = j.to(gl.int64) * k_n, j_v.to(gl.int64) * v_n
            else:  # half the integer instructions
                row, row_v = j * k_n, j_v * v_n
            here = block * capacity + tile * KEYS + line_slot
            mbarrier.wait(free.index(stage), ((n // STAGES) & 1) ^ 1)
            load_async(k_ring.index(stage), k_head + row[:, None] + column[None, :])
            load_async(v_ring.index(stage), v_head + row_v[:, None] + column_v[None, :])
            load_async(span_ring.index(stage), span_ptr + here)
            if HAS_BIAS:
                load_async(bias_ring.index(stage), list_bias_ptr + here)
            async_copy.commit_group()
            async_copy.wait_group(LAG)
            if tile >= LAG:
                announce(full, n - LAG, STAGES)
            j = next_j
            n += 1
        async_copy.wait_group(0)
        for tile in range(n - gl.minimum(tiles, LAG), n):
            announce(full, tile, STAGES)


@gluon.jit
def announce(full, n, STAGES: gl.constexpr):
    """Tile n has arrived. The fence shows what copies wrote to the matrix units, which read past the usual order."""
    fence_async_shared()
    thread_barrier()
    mbarrier.arrive(full.index(n % STAGES), count=1)


@gluon.jit
def weights_of_tile(
    products, asks, span_line, bias_line, query, subtract, scale_log2, HAS_BIAS: gl.constexpr, SUBTRACT: gl.constexpr
):
    """2 ** (scale * q . k + listed bias - subtract) of a tile, 0 where the key does not live for the query."""
    keys: gl.constexpr = gl.SliceLayout(0, products.type.layout)
    logits = products * scale_log2
    if HAS_BIAS:
        logits += bias_line.load(keys)[None, :]
    if SUBTRACT:
        logits -= subtract[:, None]
    if asks != 0:
        span = span_line.load(keys)
        logits = gl.where(query[:, None] < (span >> 16)[None, :], logits, float("-inf"))
        if asks > 1:
            logits = gl.where((span & 0xFFFF)[None, :] <= query[:, None], logits, float("-inf"))
    return gl.exp2(logits)


@gluon.jit
def sum_within_threads(tile):
    """Four sums of every row of a product's tile, one for each of the threads that hold the row: threads need to meet
    only when all tiles are summed."""
    return gl.sum(gl.sum(gl.reshape(tile, [tile.shape[0], tile.shape[1] // 8, 4, 2]), 3), 1)
