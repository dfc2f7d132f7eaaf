"""dK, dV and dbias of interval attention on Hopper GPUs: groups of keys over the queries of their lifetimes.

A program has two neighbouring groups of keys, one for each of two warp groups, which hold both sums in registers; a
warp fetches queries for both, in order, so that the tensor memory accelerator can copy whole tiles. A group skips the
tiles that only the other needs.
"""

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

from dma_lab.kernels.head_sums import sum_query_heads
from dma_lab.kernels.hopper_ring import sum_within_threads, thread_barrier
from dma_lab.kernels.key_lists_triton import LOG2_E
from dma_lab.kernels.key_order import bucket_size, group_of_program, rows_abreast

_KEYS = gl.constexpr(64)  # of each group
_QUERIES = gl.constexpr(32)
_STAGES = 6
_FETCHER_REGISTERS = gl.constexpr(24)
_SUMMER_REGISTERS = gl.constexpr(240)  # two groups of them, and the fetcher's: 504 of the 512 there are a lane
_copy_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # before Triton 3.8


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
    """What ``interval_backward_dkv`` gives, for inputs that ``hopper_suits``."""
    B, H, N, D = q.shape
    K, D_v = k.shape[1], v.shape[-1]
    dtype = q.dtype if H == K else torch.float32
    dk = torch.empty(B, N, H, D, dtype=dtype, device=q.device).transpose(1, 2)
    dv = torch.empty(B, N, H, D_v, dtype=dtype, device=q.device).transpose(1, 2)
    d_bias = torch.empty(B, H, N, dtype=torch.float32, device=q.device)
    pairs = bucket_size(N) // (2 * _KEYS.value)
    lse_tiles, delta_tiles = (_line_tiles(F.pad(line, (0, -N % 4)) if N % 4 else line) for line in (lse, delta))
    _dkv_kernel[(triton.cdiv(N, bucket_size(N)) * pairs * B * H,)](
        _query_tiles(q),
        _query_tiles(d_out),
        lse_tiles,
        delta_tiles,
        k,
        v,
        lse if bias is None else bias,
        expiry,
        order_rn,
        dk,
        dv,
        d_bias,
        *k.stride()[:3],
        *v.stride()[:3],
        *dk.stride()[:3],
        *dv.stride()[:3],
        B * H,
        H,
        H // K,
        N,
        N + -N % 4,
        scale,
        D=D,
        D_V=D_v,
        PAIRS=pairs,
        ABREAST=rows_abreast(N),
        STAGES=_STAGES,
        HAS_BIAS=bias is not None,
        num_warps=4,
    )
    return (dk, dv, d_bias) if H == K else sum_query_heads(expiry, dk, dv, d_bias, q.dtype)


def _query_tiles(tensor: Tensor) -> TensorDescriptor:
    """A (B, H, N, D) tensor in tiles of _QUERIES rows of a head; rows past the last are zeros."""
    D = tensor.shape[-1]
    layout = gl.NVMMASharedLayout(128, 16, 4)
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [1, 1, _QUERIES.value, D], layout)


def _line_tiles(line: Tensor) -> TensorDescriptor:
    """A (B, H, N) tensor of float32, flat, _QUERIES at a time: what lies past a head's last belongs to the next one.

    N must be a multiple of 4: a tile that does not start at a multiple of 16 bytes is an illegal instruction.
    """
    return TensorDescriptor(line, [line.numel()], [1], [_QUERIES.value], gl.NVMMASharedLayout(0, 32, 1))


@gluon.jit
def _fetch_queries(first, last, b, head, line, inputs, ring, STAGES: gl.constexpr):
    rings, full, free = ring
    q_tiles, do_tiles, lse_tiles, delta_tiles = inputs
    q_ring, do_ring, lse_ring, delta_ring = rings
    D: gl.constexpr = q_ring.shape[2]
    D_V: gl.constexpr = do_ring.shape[2]
    for tile in range(first, last):
        n = tile - first
        stage = n % STAGES
        t = tile * _QUERIES
        arrived = full.index(stage)
        mbarrier.wait(free.index(stage), ((n // STAGES) & 1) ^ 1)
        mbarrier.expect(arrived, _QUERIES * (2 * D + 2 * D_V + 8))
        _copy_tile(q_tiles, [b, head, t, 0], arrived, q_ring.index(stage).reshape([1, 1, _QUERIES, D]))
        _copy_tile(do_tiles, [b, head, t, 0], arrived, do_ring.index(stage).reshape([1, 1, _QUERIES, D_V]))
        _copy_tile(lse_tiles, [line + t], arrived, lse_ring.index(stage))
        _copy_tile(delta_tiles, [line + t], arrived, delta_ring.index(stage))


@gluon.jit
def _lifetimes(order_ptr, expiry_ptr, slot, N):
    """Keys at places ``slot`` of the order, their expiries, and the query tiles [first, last) that see any of them."""
    j = gl.load(order_ptr + slot, mask=slot < N, other=0)
    expiry = gl.load(expiry_ptr + j, mask=slot < N, other=0)
    first = gl.min(gl.where(expiry > j, j, N), 0) // _QUERIES
    last = gl.cdiv(gl.max(gl.where(expiry > j, expiry, 0), 0), _QUERIES)
    return j, expiry, first, last


@gluon.jit
def _pass_on(tile_from, tile_to, first, full, free, STAGES: gl.constexpr):
    """Tiles that only the other group needs."""
    for tile in range(tile_from, tile_to):
        n = tile - first
        mbarrier.wait(full.index(n % STAGES), (n // STAGES) & 1)
        mbarrier.arrive(free.index(n % STAGES), count=1)


@gluon.jit
def _sum_queries(
    HALF: gl.constexpr,
    pointers,
    strides,
    N,
    lives,
    scale,
    tiles,
    ring,
    D: gl.constexpr,
    D_V: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    SHARED: gl.constexpr,
):
    """One of the two summing warp groups. Both weights and their gradients are made while a product runs."""
    k_ptr, v_ptr, bias_ptr, expiry_ptr, order_ptr, dk_ptr, dv_ptr, d_bias_ptr = pointers
    k_n, v_n, dk_n, dv_n = strides
    slot0, first, last = lives
    k_tiles, v_tiles = tiles
    rings, full, free = ring
    q_ring, do_ring, lse_ring, delta_ring = rings
    k_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    v_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D_V, D_V // 8], [4, 1], [1, 0])
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, _QUERIES, 16])
    dk_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    dv_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D_V, 16])
    ds_layout: gl.constexpr = gl.DotOperandLayout(0, dk_layout, 2)
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, dv_layout, 2)
    keys: gl.constexpr = gl.SliceLayout(1, s_layout)
    queries: gl.constexpr = gl.SliceLayout(0, s_layout)

    slot = slot0 + HALF * _KEYS + gl.arange(0, _KEYS, layout=keys)
    j, expiry, mine_from, mine_to = _lifetimes(order_ptr, expiry_ptr, slot, N)
    mine_from, mine_to = gl.minimum(mine_from, last), gl.where(mine_from < mine_to, mine_to, last)
    ever = expiry > j
    unmasked_from = gl.cdiv(gl.max(gl.where(ever, j, 0), 0), _QUERIES)
    unmasked_to = gl.min(gl.where(ever, expiry, N), 0) // _QUERIES
    bias = gl.zeros((_KEYS,), gl.float32, layout=keys)
    if HAS_BIAS:
        bias = gl.load(bias_ptr + j, mask=slot < N, other=0.0).to(gl.float32) * LOG2_E
    column = gl.arange(0, D, layout=gl.SliceLayout(0, k_layout))
    column_v = gl.arange(0, D_V, layout=gl.SliceLayout(0, v_layout))
    j_k = gl.convert_layout(j, gl.SliceLayout(1, k_layout)).to(gl.int64)
    j_v = gl.convert_layout(j, gl.SliceLayout(1, v_layout)).to(gl.int64)
    k_tile, v_tile = k_tiles.index(HALF), v_tiles.index(HALF)
    k_tile.store(gl.load(k_ptr + (j_k * k_n)[:, None] + column[None, :]))
    v_tile.store(gl.load(v_ptr + (j_v * v_n)[:, None] + column_v[None, :]))
    fence_async_shared()
    thread_barrier()

    nothing = gl.zeros((_KEYS, _QUERIES), gl.float32, layout=s_layout)
    dk = gl.zeros((_KEYS, D), gl.float32, layout=dk_layout)
    dv = gl.zeros((_KEYS, D_V), gl.float32, layout=dv_layout)
    p = gl.zeros((_KEYS, _QUERIES), q_ring.dtype, layout=weights_layout)
    ds = gl.zeros((_KEYS, _QUERIES), q_ring.dtype, layout=ds_layout)
    d_bias = sum_within_threads(nothing)
    scale_log2 = scale * LOG2_E
    _pass_on(first, mine_from, first, full, free, STAGES)
    stage = (mine_from - first) % STAGES
    for tile in range(mine_from, mine_to):
        before = stage
        n = tile - first
        stage = n % STAGES
        mbarrier.wait(full.index(stage), (n // STAGES) & 1)
        q_me, do_me = q_ring.index(stage), do_ring.index(stage)
        s = warpgroup_mma(k_tile, q_me.permute((1, 0)), nothing, use_acc=False, is_async=True)
        d_weights = warpgroup_mma(v_tile, do_me.permute((1, 0)), nothing, use_acc=False, is_async=True)
        dv = warpgroup_mma(p, do_ring.index(before), dv, is_async=True)
        dk = warpgroup_mma(ds, q_ring.index(before), dk, is_async=True)
        s, d_weights = warpgroup_mma_wait(2, deps=[s, d_weights])
        weights = gl.exp2(s * scale_log2 + bias[:, None] - lse_ring.index(stage).load(queries)[None, :])
        if (tile < unmasked_from) | (tile >= unmasked_to):
            t = tile * _QUERIES + gl.arange(0, _QUERIES, layout=queries)
            weights = gl.where((j[:, None] <= t[None, :]) & (t[None, :] < expiry[:, None]), weights, 0.0)
        d_logits = weights * (d_weights - delta_ring.index(stage).load(queries)[None, :])
        d_bias += sum_within_threads(d_logits)
        dv, dk, p, ds = warpgroup_mma_wait(0, deps=[dv, dk, p, ds])
        if tile > mine_from:
            mbarrier.arrive(free.index(before), count=1)
        p = gl.convert_layout(weights.to(q_ring.dtype), weights_layout)
        ds = gl.convert_layout(d_logits.to(q_ring.dtype), ds_layout)
    if mine_from < mine_to:
        dv = warpgroup_mma(p, do_ring.index(stage), dv, is_async=True)
        dk = warpgroup_mma(ds, q_ring.index(stage), dk, is_async=True)
        dv, dk, p, ds = warpgroup_mma_wait(0, deps=[dv, dk, p, ds])
        mbarrier.arrive(free.index(stage), count=1)
    _pass_on(mine_to, last, first, full, free, STAGES)

    d_bias = gl.convert_layout(gl.sum(d_bias, 1), keys)
    gl.store(d_bias_ptr + j, gl.where(ever, d_bias, 0.0), mask=slot < N)
    if SHARED:  # as the products lie: a quad's float32 fill a sector. Sums over heads read no key that never lives
        ever_k = gl.convert_layout(ever, gl.SliceLayout(1, dk_layout))
        ever_v = gl.convert_layout(ever, gl.SliceLayout(1, dv_layout))
        row_k = gl.convert_layout(j, gl.SliceLayout(1, dk_layout)).to(gl.int64) * dk_n
        row_v = gl.convert_layout(j, gl.SliceLayout(1, dv_layout)).to(gl.int64) * dv_n
        place_k = row_k[:, None] + gl.arange(0, D, layout=gl.SliceLayout(0, dk_layout))[None, :]
        place_v = row_v[:, None] + gl.arange(0, D_V, layout=gl.SliceLayout(0, dv_layout))[None, :]
        gl.store(dk_ptr + place_k, dk * scale, mask=ever_k[:, None])
        gl.store(dv_ptr + place_v, dv, mask=ever_v[:, None])
    else:
        ever_k = gl.convert_layout(ever, gl.SliceLayout(1, k_layout))
        ever_v = gl.convert_layout(ever, gl.SliceLayout(1, v_layout))
        in_k = slot0 + HALF * _KEYS + gl.arange(0, _KEYS, layout=gl.SliceLayout(1, k_layout)) < N
        in_v = slot0 + HALF * _KEYS + gl.arange(0, _KEYS, layout=gl.SliceLayout(1, v_layout)) < N
        dk_sd = gl.convert_layout((dk * scale).to(dk_ptr.dtype.element_ty), k_layout)
        dv_se = gl.convert_layout(dv.to(dv_ptr.dtype.element_ty), v_layout)
        dk_sd = gl.where(ever_k[:, None], dk_sd, gl.zeros_like(dk_sd))
        dv_se = gl.where(ever_v[:, None], dv_se, gl.zeros_like(dv_se))
        gl.store(dk_ptr + (j_k * dk_n)[:, None] + column[None, :], dk_sd, mask=in_k[:, None])
        gl.store(dv_ptr + (j_v * dv_n)[:, None] + column_v[None, :], dv_se, mask=in_v[:, None])


@gluon.jit
def _dkv_kernel(
    q_tiles,
    do_tiles,
    lse_tiles,
    delta_tiles,
    k_ptr,
    v_ptr,
    bias_ptr,
    expiry_ptr,
    order_ptr,
    dk_ptr,
    dv_ptr,
    d_bias_ptr,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    dk_b,
    dk_h,
    dk_n,
    dv_b,
    dv_h,
    dv_n,
    rows,
    H,
    group_size,
    N,
    line_n,
    scale,
    D: gl.constexpr,
    D_V: gl.constexpr,
    PAIRS: gl.constexpr,
    ABREAST: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_BIAS: gl.constexpr,
):
    row, pair = group_of_program(gl.program_id(0), rows, PAIRS, ABREAST)
    slot0 = pair * (2 * _KEYS)
    b, head = (row // H).to(gl.int64), (row % H).to(gl.int64)
    kv_head = head // group_size
    kv_row = (b * (H // group_size) + kv_head) * N
    statistics = row.to(gl.int64) * N
    slot = slot0 + gl.arange(0, 2 * _KEYS, layout=gl.BlockedLayout([1], [32], [4], [0]))
    _j, _expiry, first, last = _lifetimes(order_ptr + kv_row, expiry_ptr + kv_row, slot, N)

    dk_head = dk_ptr + b * dk_b + head * dk_h
    dv_head = dv_ptr + b * dv_b + head * dv_h
    shared: gl.constexpr = dk_ptr.dtype.element_ty == gl.float32
    if last <= first:
        if not shared:  # sums over heads read no key that never lives
            _store_nothing(order_ptr + kv_row, slot0, dk_head, dk_n, dv_head, dv_n, d_bias_ptr + statistics, N, D, D_V)
        return

    matrix: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    line: gl.constexpr = gl.NVMMASharedLayout(0, 32, 1)
    dtype: gl.constexpr = k_ptr.dtype.element_ty
    tiles = (
        gl.allocate_shared_memory(dtype, [2, _KEYS, D], matrix),
        gl.allocate_shared_memory(dtype, [2, _KEYS, D_V], matrix),
    )
    rings = (
        gl.allocate_shared_memory(dtype, [STAGES, _QUERIES, D], matrix),
        gl.allocate_shared_memory(dtype, [STAGES, _QUERIES, D_V], matrix),
        gl.allocate_shared_memory(gl.float32, [STAGES, _QUERIES], line),
        gl.allocate_shared_memory(gl.float32, [STAGES, _QUERIES], line),
    )
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(free.index(stage), count=2)
    ring = (rings, full, free)

    pointers = (
        k_ptr + b * k_b + kv_head * k_h,
        v_ptr + b * v_b + kv_head * v_h,
        bias_ptr + kv_row,
        expiry_ptr + kv_row,
        order_ptr + kv_row,
        dk_head,
        dv_head,
        d_bias_ptr + statistics,
    )
    strides = (k_n, v_n, dk_n, dv_n)
    inputs = (q_tiles, do_tiles, lse_tiles, delta_tiles)
    upper: gl.constexpr = 0
    lower: gl.constexpr = 1
    lives = (slot0, first, last)
    gl.warp_specialize(
        [
            (_sum_queries, (upper, pointers, strides, N, lives, scale, tiles, ring, D, D_V, STAGES, HAS_BIAS, shared)),
            (_sum_queries, (lower, pointers, strides, N, lives, scale, tiles, ring, D, D_V, STAGES, HAS_BIAS, shared)),
            (_fetch_queries, (first, last, row // H, row % H, row * line_n, inputs, ring, STAGES)),
        ],
        [4, 1],
        [_SUMMER_REGISTERS, _FETCHER_REGISTERS],
    )


@gluon.jit
def _store_nothing(order_ptr, slot0, dk_ptr, dk_n, dv_ptr, dv_n, d_bias_ptr, N, D: gl.constexpr, D_V: gl.constexpr):
    """The gradients of keys none of which ever lives."""
    k_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    v_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D_V, D_V // 8], [4, 1], [1, 0])
    slot = slot0 + gl.arange(0, 2 * _KEYS, layout=gl.SliceLayout(1, k_layout))
    slot_v = slot0 + gl.arange(0, 2 * _KEYS, layout=gl.SliceLayout(1, v_layout))
    j = gl.load(order_ptr + slot, mask=slot < N, other=0).to(gl.int64)
    j_v = gl.load(order_ptr + slot_v, mask=slot_v < N, other=0).to(gl.int64)
    column = gl.arange(0, D, layout=gl.SliceLayout(0, k_layout))
    column_v = gl.arange(0, D_V, layout=gl.SliceLayout(0, v_layout))
    zeros = gl.zeros((2 * _KEYS, D), dk_ptr.dtype.element_ty, layout=k_layout)
    zeros_v = gl.zeros((2 * _KEYS, D_V), dv_ptr.dtype.element_ty, layout=v_layout)
    gl.store(dk_ptr + (j * dk_n)[:, None] + column[None, :], zeros, mask=(slot < N)[:, None])
    gl.store(dv_ptr + (j_v * dv_n)[:, None] + column_v[None, :], zeros_v, mask=(slot_v < N)[:, None])
    gl.store(d_bias_ptr + j, gl.zeros_like(j).to(gl.float32), mask=slot < N)
