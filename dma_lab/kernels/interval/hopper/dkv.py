"""dK, dV and dbias of interval attention on Hopper GPUs: groups of keys over the queries of their lifetimes.

A program has two neighbouring groups of keys, one for each of two consumers (warp groups, which hold both sums in
registers); a warp fetches queries for both, in order, so that the tensor memory accelerator can copy whole tiles. A
group skips the tiles that only the other needs.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from dma_lab.kernels.interval.arguments import heads_of, new_heads
from dma_lab.kernels.interval.compaction import LOG2_E
from dma_lab.kernels.interval.hopper.ring import (
    acquire,
    await_tile,
    new_barriers,
    release,
    sum_within_threads,
    thread_barrier,
)
from dma_lab.kernels.interval.key_order import bucket_size, group_of_program, rows_abreast
from dma_lab.kernels.interval.triton.head_sums import sum_query_heads

_KEYS = gl.constexpr(64)  # of each group
_QUERIES = gl.constexpr(32)
_STAGES = 6
_PRODUCER_REGISTERS = gl.constexpr(24)
_CONSUMER_REGISTERS = gl.constexpr(240)  # two groups of them, and the producer's: 504 of the 512 there are per lane
_copy_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # before Triton 3.8


class _Sizes(NamedTuple):
    """Of the problem, known at launch."""

    R: int
    """B * H: here the query heads of a key/value head are rows of their own."""
    H: int
    group_size: int
    N: int
    padded_n: int
    """N in the statistics that tiles are copied from: a multiple of 4."""
    scale: float


class _Config(NamedTuple):
    """What the kernel is compiled for."""

    D: int
    E: int
    PAIRS: int
    """Pairs of groups in a bucket of the order."""
    ABREAST: int
    STAGES: int


def hopper_dkv(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    expiry: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    delta: Tensor,
    order_rn: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``interval_backward_dkv`` gives, for inputs that ``hopper_supports``."""
    B, H, N, D = q.shape
    K, E, bucket = k.shape[1], v.shape[-1], bucket_size(N)
    dtype = q.dtype if H == K else torch.float32
    dk, dv = new_heads(q, H, D, dtype), new_heads(q, H, E, dtype)
    d_bias = torch.empty(B, H, N, dtype=torch.float32, device=q.device)
    config = _Config(D, E, bucket // (2 * _KEYS.value), rows_abreast(N), _STAGES)
    sizes = _Sizes(B * H, H, H // K, N, N + -N % 4, scale)
    tiles = _query_tiles(q), _query_tiles(d_out), _line_tiles(lse), _line_tiles(delta)
    _dkv_kernel[(triton.cdiv(N, bucket) * config.PAIRS * B * H,)](
        *tiles, *heads_of(k, v, dk, dv), bias, expiry, order_rn, d_bias, sizes, config, num_warps=4
    )
    return (dk, dv, d_bias) if H == K else sum_query_heads(expiry, dk, dv, d_bias, q.dtype)


def _query_tiles(tensor: Tensor) -> TensorDescriptor:
    """A (B, H, N, D) tensor in tiles of _QUERIES rows of a head; rows past the last are zeros."""
    D = tensor.shape[-1]
    layout = gl.NVMMASharedLayout(128, 16, 4)
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [1, 1, _QUERIES.value, D], layout)


def _line_tiles(line: Tensor) -> TensorDescriptor:
    """A (B, H, N) tensor of float32, flat, _QUERIES at a time: what lies past a head's last belongs to the next one.

    N is padded to a multiple of 4: a tile that does not start at a multiple of 16 bytes is an illegal instruction.
    """
    N = line.shape[-1]
    line = F.pad(line, (0, -N % 4)) if N % 4 else line
    return TensorDescriptor(line, [line.numel()], [1], [_QUERIES.value], gl.NVMMASharedLayout(0, 32, 1))


class _QueryRing(NamedTuple):
    """Shared memory of STAGES tiles of queries, and the barriers that say full and free."""

    q: gl.shared_memory_descriptor
    d_out: gl.shared_memory_descriptor
    lse: gl.shared_memory_descriptor
    delta: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    free: gl.shared_memory_descriptor


class _Pair(NamedTuple):
    """What both consumers of a program need to know."""

    slot0: gl.tensor
    """The first key's place in the order."""
    first: gl.tensor
    last: gl.tensor
    """Query tiles [first, last) that see any of the keys."""


@gluon.jit
def _dkv_kernel(
    q_tiles, do_tiles, lse_tiles, delta_tiles, k, v, dk, dv, bias_ptr, expiry_ptr, order_ptr, d_bias_ptr, sizes,
    C: gl.constexpr,
):  # fmt: skip
    row, pair_number = group_of_program(gl.program_id(0), sizes.R, C.PAIRS, C.ABREAST)
    slot0 = pair_number * (2 * _KEYS)
    b, head = (row // sizes.H).to(gl.int64), (row % sizes.H).to(gl.int64)
    kv_head = head // sizes.group_size
    kv_row = (b * (sizes.H // sizes.group_size) + kv_head) * sizes.N
    statistics = row.to(gl.int64) * sizes.N
    slot_s = slot0 + gl.arange(0, 2 * _KEYS, layout=gl.BlockedLayout([1], [32], [4], [0]))
    _j_s, _expiry_s, first, last = _lifetimes(order_ptr + kv_row, expiry_ptr + kv_row, slot_s, sizes.N)

    dk_head = dk.ptr + b * dk.b + head * dk.h
    dv_head = dv.ptr + b * dv.b + head * dv.h
    shared: gl.constexpr = dk.ptr.dtype.element_ty == gl.float32
    if last <= first:
        if not shared:  # sums over heads read no key that never lives
            _store_nothing(order_ptr + kv_row, slot0, dk_head, dk.n, dv_head, dv.n, d_bias_ptr + statistics, sizes.N, C)
        return

    matrix: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    line: gl.constexpr = gl.NVMMASharedLayout(0, 32, 1)
    dtype: gl.constexpr = k.ptr.dtype.element_ty
    k_halves = gl.allocate_shared_memory(dtype, [2, _KEYS, C.D], matrix)
    v_halves = gl.allocate_shared_memory(dtype, [2, _KEYS, C.E], matrix)
    q_ring = gl.allocate_shared_memory(dtype, [C.STAGES, _QUERIES, C.D], matrix)
    do_ring = gl.allocate_shared_memory(dtype, [C.STAGES, _QUERIES, C.E], matrix)
    lse_ring = gl.allocate_shared_memory(gl.float32, [C.STAGES, _QUERIES], line)
    delta_ring = gl.allocate_shared_memory(gl.float32, [C.STAGES, _QUERIES], line)
    full, free = new_barriers(C.STAGES)
    ring = _QueryRing(q_ring, do_ring, lse_ring, delta_ring, full, free)

    # From here on what belongs to this program's heads, with the strides of rows.
    inputs = (k.ptr + b * k.b + kv_head * k.h, k.n, v.ptr + b * v.b + kv_head * v.h, v.n, k_halves, v_halves)
    if bias_ptr is not None:
        bias_ptr += kv_row
    lines = (bias_ptr, expiry_ptr + kv_row, order_ptr + kv_row)
    results = (dk_head, dk.n, dv_head, dv.n, d_bias_ptr + statistics)
    pair, place = _Pair(slot0, first, last), (row // sizes.H, row % sizes.H, row * sizes.padded_n)
    upper: gl.constexpr = 0
    lower: gl.constexpr = 1
    gl.warp_specialize(
        [
            (_sum_queries, (upper, inputs, lines, results, pair, sizes.N, sizes.scale, ring, C)),
            (_sum_queries, (lower, inputs, lines, results, pair, sizes.N, sizes.scale, ring, C)),
            (_produce_queries, (q_tiles, do_tiles, lse_tiles, delta_tiles, place, pair, ring, C)),
        ],
        [4, 1],
        [_CONSUMER_REGISTERS, _PRODUCER_REGISTERS],
    )


@gluon.jit
def _lifetimes(order_ptr, expiry_ptr, slot_s, N):
    """Keys at places ``slot_s`` of the order, their expiries, and the query tiles [first, last) that see any."""
    j_s = gl.load(order_ptr + slot_s, mask=slot_s < N, other=0)
    expiry_s = gl.load(expiry_ptr + j_s, mask=slot_s < N, other=0)
    first = gl.min(gl.where(expiry_s > j_s, j_s, N), 0) // _QUERIES
    last = gl.cdiv(gl.max(gl.where(expiry_s > j_s, expiry_s, 0), 0), _QUERIES)
    return j_s, expiry_s, first, last


@gluon.jit
def _produce_queries(q_tiles, do_tiles, lse_tiles, delta_tiles, place, pair, ring, C: gl.constexpr):
    """The producer's warp: query tiles of the head at ``place``, whose statistics begin at its ``line``."""
    b, head, line = place
    for tile in range(pair.first, pair.last):
        n = tile - pair.first
        stage = n % C.STAGES
        t = tile * _QUERIES
        arrived = ring.full.index(stage)
        acquire(ring, n, C.STAGES)
        mbarrier.expect(arrived, _QUERIES * (2 * C.D + 2 * C.E + 8))
        _copy_tile(q_tiles, [b, head, t, 0], arrived, ring.q.index(stage).reshape([1, 1, _QUERIES, C.D]))
        _copy_tile(do_tiles, [b, head, t, 0], arrived, ring.d_out.index(stage).reshape([1, 1, _QUERIES, C.E]))
        _copy_tile(lse_tiles, [line + t], arrived, ring.lse.index(stage))
        _copy_tile(delta_tiles, [line + t], arrived, ring.delta.index(stage))


@gluon.jit
def _pass_on(tile_from, tile_to, first, ring, STAGES: gl.constexpr):
    """Tiles that only the other group needs."""
    for tile in range(tile_from, tile_to):
        release(ring, await_tile(ring, tile - first, STAGES))


@gluon.jit
def _sum_queries(HALF: gl.constexpr, inputs, lines, results, pair, N, scale, ring, C: gl.constexpr):
    """One of the two consumers. Both weights and their gradients are made while a product runs."""
    D: gl.constexpr = C.D
    E: gl.constexpr = C.E
    k_head, k_n, v_head, v_n, k_halves, v_halves = inputs
    bias_ptr, expiry_ptr, order_ptr = lines
    dk_head, dk_n, dv_head, dv_n, d_bias_ptr = results
    SHARED: gl.constexpr = dk_head.dtype.element_ty == gl.float32
    k_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    v_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // E, E // 8], [4, 1], [1, 0])
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, _QUERIES, 16])
    dk_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    dv_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, E, 16])
    ds_layout: gl.constexpr = gl.DotOperandLayout(0, dk_layout, 2)
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, dv_layout, 2)
    of_keys: gl.constexpr = gl.SliceLayout(1, s_layout)
    of_queries: gl.constexpr = gl.SliceLayout(0, s_layout)

    # This group's keys: when they live, their rows in shared memory, and the tiles [mine_from, mine_to) they need.
    slot_s = pair.slot0 + HALF * _KEYS + gl.arange(0, _KEYS, layout=of_keys)
    j_s, expiry_s, mine_from, mine_to = _lifetimes(order_ptr, expiry_ptr, slot_s, N)
    mine_from, mine_to = gl.minimum(mine_from, pair.last), gl.where(mine_from < mine_to, mine_to, pair.last)
    ever_s = expiry_s > j_s
    unmasked_from = gl.cdiv(gl.max(gl.where(ever_s, j_s, 0), 0), _QUERIES)
    unmasked_to = gl.min(gl.where(ever_s, expiry_s, N), 0) // _QUERIES
    bias_s = gl.zeros((_KEYS,), gl.float32, layout=of_keys)
    if bias_ptr is not None:
        bias_s = gl.load(bias_ptr + j_s, mask=slot_s < N, other=0.0).to(gl.float32) * LOG2_E
    column_d = gl.arange(0, D, layout=gl.SliceLayout(0, k_layout))
    column_e = gl.arange(0, E, layout=gl.SliceLayout(0, v_layout))
    j_of_k_s = gl.convert_layout(j_s, gl.SliceLayout(1, k_layout)).to(gl.int64)
    j_of_v_s = gl.convert_layout(j_s, gl.SliceLayout(1, v_layout)).to(gl.int64)
    k_tile, v_tile = k_halves.index(HALF), v_halves.index(HALF)
    k_tile.store(gl.load(k_head + (j_of_k_s * k_n)[:, None] + column_d[None, :]))
    v_tile.store(gl.load(v_head + (j_of_v_s * v_n)[:, None] + column_e[None, :]))
    fence_async_shared()
    thread_barrier()

    # Tile by tile: this one's weights and gradients beside the last one's products. Those start from zeros.
    nothing_sa = gl.zeros((_KEYS, _QUERIES), gl.float32, layout=s_layout)
    dk_sd = gl.zeros((_KEYS, D), gl.float32, layout=dk_layout)
    dv_se = gl.zeros((_KEYS, E), gl.float32, layout=dv_layout)
    p_sa = gl.zeros((_KEYS, _QUERIES), ring.q.dtype, layout=weights_layout)
    ds_sa = gl.zeros((_KEYS, _QUERIES), ring.q.dtype, layout=ds_layout)
    d_bias_s4 = sum_within_threads(nothing_sa)
    scale_log2 = scale * LOG2_E
    _pass_on(pair.first, mine_from, pair.first, ring, C.STAGES)
    stage = (mine_from - pair.first) % C.STAGES
    for tile in range(mine_from, mine_to):
        before = stage
        stage = await_tile(ring, tile - pair.first, C.STAGES)
        q_tile, do_tile = ring.q.index(stage), ring.d_out.index(stage)
        s_sa = warpgroup_mma(k_tile, q_tile.permute((1, 0)), nothing_sa, use_acc=False, is_async=True)
        dp_sa = warpgroup_mma(v_tile, do_tile.permute((1, 0)), nothing_sa, use_acc=False, is_async=True)
        dv_se = warpgroup_mma(p_sa, ring.d_out.index(before), dv_se, is_async=True)
        dk_sd = warpgroup_mma(ds_sa, ring.q.index(before), dk_sd, is_async=True)
        s_sa, dp_sa = warpgroup_mma_wait(2, deps=[s_sa, dp_sa])
        weights_sa = gl.exp2(s_sa * scale_log2 + bias_s[:, None] - ring.lse.index(stage).load(of_queries)[None, :])
        if (tile < unmasked_from) | (tile >= unmasked_to):
            t_a = tile * _QUERIES + gl.arange(0, _QUERIES, layout=of_queries)
            live_sa = (j_s[:, None] <= t_a[None, :]) & (t_a[None, :] < expiry_s[:, None])
            weights_sa = gl.where(live_sa, weights_sa, 0.0)
        d_logits_sa = weights_sa * (dp_sa - ring.delta.index(stage).load(of_queries)[None, :])
        d_bias_s4 += sum_within_threads(d_logits_sa)
        dv_se, dk_sd, p_sa, ds_sa = warpgroup_mma_wait(0, deps=[dv_se, dk_sd, p_sa, ds_sa])
        if tile > mine_from:
            release(ring, before)
        p_sa = gl.convert_layout(weights_sa.to(ring.q.dtype), weights_layout)
        ds_sa = gl.convert_layout(d_logits_sa.to(ring.q.dtype), ds_layout)
    if mine_from < mine_to:
        dv_se = warpgroup_mma(p_sa, ring.d_out.index(stage), dv_se, is_async=True)
        dk_sd = warpgroup_mma(ds_sa, ring.q.index(stage), dk_sd, is_async=True)
        dv_se, dk_sd, p_sa, ds_sa = warpgroup_mma_wait(0, deps=[dv_se, dk_sd, p_sa, ds_sa])
        release(ring, stage)
    _pass_on(mine_to, pair.last, pair.first, ring, C.STAGES)

    d_bias_s = gl.convert_layout(gl.sum(d_bias_s4, 1), of_keys)
    gl.store(d_bias_ptr + j_s, gl.where(ever_s, d_bias_s, 0.0), mask=slot_s < N)
    if SHARED:  # as the products lie: a quad's float32 fill a sector. Sums over heads read no key that never lives
        ever_k_s = gl.convert_layout(ever_s, gl.SliceLayout(1, dk_layout))
        ever_v_s = gl.convert_layout(ever_s, gl.SliceLayout(1, dv_layout))
        row_k_s = gl.convert_layout(j_s, gl.SliceLayout(1, dk_layout)).to(gl.int64) * dk_n
        row_v_s = gl.convert_layout(j_s, gl.SliceLayout(1, dv_layout)).to(gl.int64) * dv_n
        place_k = row_k_s[:, None] + gl.arange(0, D, layout=gl.SliceLayout(0, dk_layout))[None, :]
        place_v = row_v_s[:, None] + gl.arange(0, E, layout=gl.SliceLayout(0, dv_layout))[None, :]
        gl.store(dk_head + place_k, dk_sd * scale, mask=ever_k_s[:, None])
        gl.store(dv_head + place_v, dv_se, mask=ever_v_s[:, None])
    else:
        ever_k_s = gl.convert_layout(ever_s, gl.SliceLayout(1, k_layout))
        ever_v_s = gl.convert_layout(ever_s, gl.SliceLayout(1, v_layout))
        slot_k_s = pair.slot0 + HALF * _KEYS + gl.arange(0, _KEYS, layout=gl.SliceLayout(1, k_layout))
        slot_v_s = pair.slot0 + HALF * _KEYS + gl.arange(0, _KEYS, layout=gl.SliceLayout(1, v_layout))
        dk_out = gl.convert_layout((dk_sd * scale).to(dk_head.dtype.element_ty), k_layout)
        dv_out = gl.convert_layout(dv_se.to(dv_head.dtype.element_ty), v_layout)
        dk_out = gl.where(ever_k_s[:, None], dk_out, gl.zeros_like(dk_out))
        dv_out = gl.where(ever_v_s[:, None], dv_out, gl.zeros_like(dv_out))
        gl.store(dk_head + (j_of_k_s * dk_n)[:, None] + column_d[None, :], dk_out, mask=(slot_k_s < N)[:, None])
        gl.store(dv_head + (j_of_v_s * dv_n)[:, None] + column_e[None, :], dv_out, mask=(slot_v_s < N)[:, None])


@gluon.jit
def _store_nothing(order_ptr, slot0, dk_head, dk_n, dv_head, dv_n, d_bias_ptr, N, C: gl.constexpr):
    """The gradients of keys none of which ever lives."""
    D: gl.constexpr = C.D
    E: gl.constexpr = C.E
    k_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    v_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // E, E // 8], [4, 1], [1, 0])
    slot_k_s = slot0 + gl.arange(0, 2 * _KEYS, layout=gl.SliceLayout(1, k_layout))
    slot_v_s = slot0 + gl.arange(0, 2 * _KEYS, layout=gl.SliceLayout(1, v_layout))
    j_of_k_s = gl.load(order_ptr + slot_k_s, mask=slot_k_s < N, other=0).to(gl.int64)
    j_of_v_s = gl.load(order_ptr + slot_v_s, mask=slot_v_s < N, other=0).to(gl.int64)
    column_d = gl.arange(0, D, layout=gl.SliceLayout(0, k_layout))
    column_e = gl.arange(0, E, layout=gl.SliceLayout(0, v_layout))
    zeros_sd = gl.zeros((2 * _KEYS, D), dk_head.dtype.element_ty, layout=k_layout)
    zeros_se = gl.zeros((2 * _KEYS, E), dv_head.dtype.element_ty, layout=v_layout)
    gl.store(dk_head + (j_of_k_s * dk_n)[:, None] + column_d[None, :], zeros_sd, mask=(slot_k_s < N)[:, None])
    gl.store(dv_head + (j_of_v_s * dv_n)[:, None] + column_e[None, :], zeros_se, mask=(slot_v_s < N)[:, None])
    gl.store(d_bias_ptr + j_of_k_s, gl.zeros_like(j_of_k_s).to(gl.float32), mask=slot_k_s < N)
