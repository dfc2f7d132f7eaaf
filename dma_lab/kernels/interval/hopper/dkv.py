"""dK, dV and dbias of interval attention on Hopper GPUs: groups of keys over the queries of their lifetimes.

A program has two neighbouring groups of keys, one for each of two consumers (warp groups, which hold both sums in
registers, ``key_sums``); a warp fetches queries for both, in order (``query_ring``). A group skips the tiles that only
the other needs.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from dma_lab.kernels.interval.arguments import heads_of, new_heads
from dma_lab.kernels.interval.hopper.key_sums import GROUP_KEYS, store_nothing, sum_queries
from dma_lab.kernels.interval.hopper.query_ring import (
    TILE_QUERIES,
    Pair,
    QueryRing,
    lifetimes,
    line_tiles,
    produce_queries,
    query_tiles,
)
from dma_lab.kernels.interval.hopper.ring import new_barriers
from dma_lab.kernels.interval.key_order import bucket_size, group_of_program, rows_abreast
from dma_lab.kernels.interval.triton.head_sums import sum_query_heads
from dma_lab.kernels.sizes import cdiv

_STAGES = 6
_PRODUCER_REGISTERS = gl.constexpr(24)
_CONSUMER_REGISTERS = gl.constexpr(240)  # two groups of them, and the producer's: 504 of the 512 there are per lane


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
    config = _Config(D, E, bucket // (2 * GROUP_KEYS.value), rows_abreast(N), _STAGES)
    sizes = _Sizes(B * H, H, H // K, N, N + -N % 4, scale)
    tiles = query_tiles(q), query_tiles(d_out), line_tiles(lse), line_tiles(delta)
    _dkv_kernel[(cdiv(N, bucket) * config.PAIRS * B * H,)](
        *tiles, *heads_of(k, v, dk, dv), bias, expiry, order_rn, d_bias, sizes, config, num_warps=4
    )
    return (dk, dv, d_bias) if H == K else sum_query_heads(expiry, dk, dv, d_bias, q.dtype)


@gluon.jit
def _dkv_kernel(
    q_tiles, do_tiles, lse_tiles, delta_tiles, k, v, dk, dv, bias_ptr, expiry_ptr, order_ptr, d_bias_ptr, sizes,
    C: gl.constexpr,
):  # fmt: skip
    row, pair_number = group_of_program(gl.program_id(0), sizes.R, C.PAIRS, C.ABREAST)
    slot0 = pair_number * (2 * GROUP_KEYS)
    b, head = (row // sizes.H).to(gl.int64), (row % sizes.H).to(gl.int64)
    kv_head = head // sizes.group_size
    kv_row = (b * (sizes.H // sizes.group_size) + kv_head) * sizes.N
    statistics = row.to(gl.int64) * sizes.N
    slot_s = slot0 + gl.arange(0, 2 * GROUP_KEYS, layout=gl.BlockedLayout([1], [32], [4], [0]))
    _j_s, _expiry_s, first, last = lifetimes(order_ptr + kv_row, expiry_ptr + kv_row, slot_s, sizes.N)

    dk_head = dk.ptr + b * dk.b + head * dk.h
    dv_head = dv.ptr + b * dv.b + head * dv.h
    shared: gl.constexpr = dk.ptr.dtype.element_ty == gl.float32
    if last <= first:
        if not shared:  # sums over heads read no key that never lives
            store_nothing(order_ptr + kv_row, slot0, dk_head, dk.n, dv_head, dv.n, d_bias_ptr + statistics, sizes.N, C)
        return

    matrix: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    line: gl.constexpr = gl.NVMMASharedLayout(0, 32, 1)
    dtype: gl.constexpr = k.ptr.dtype.element_ty
    k_halves = gl.allocate_shared_memory(dtype, [2, GROUP_KEYS, C.D], matrix)
    v_halves = gl.allocate_shared_memory(dtype, [2, GROUP_KEYS, C.E], matrix)
    q_ring = gl.allocate_shared_memory(dtype, [C.STAGES, TILE_QUERIES, C.D], matrix)
    do_ring = gl.allocate_shared_memory(dtype, [C.STAGES, TILE_QUERIES, C.E], matrix)
    lse_ring = gl.allocate_shared_memory(gl.float32, [C.STAGES, TILE_QUERIES], line)
    delta_ring = gl.allocate_shared_memory(gl.float32, [C.STAGES, TILE_QUERIES], line)
    full, free = new_barriers(C.STAGES)
    ring = QueryRing(q_ring, do_ring, lse_ring, delta_ring, full, free)

    # From here on what belongs to this program's heads, with the strides of rows.
    inputs = (k.ptr + b * k.b + kv_head * k.h, k.n, v.ptr + b * v.b + kv_head * v.h, v.n, k_halves, v_halves)
    if bias_ptr is not None:
        bias_ptr += kv_row
    lines = (bias_ptr, expiry_ptr + kv_row, order_ptr + kv_row)
    results = (dk_head, dk.n, dv_head, dv.n, d_bias_ptr + statistics)
    pair, place = Pair(slot0, first, last), (row // sizes.H, row % sizes.H, row * sizes.padded_n)
    upper: gl.constexpr = 0
    lower: gl.constexpr = 1
    gl.warp_specialize(
        [
            (sum_queries, (upper, inputs, lines, results, pair, sizes.N, sizes.scale, ring, C)),
            (sum_queries, (lower, inputs, lines, results, pair, sizes.N, sizes.scale, ring, C)),
            (produce_queries, (q_tiles, do_tiles, lse_tiles, delta_tiles, place, pair, ring, C)),
        ],
        [4, 1],
        [_CONSUMER_REGISTERS, _PRODUCER_REGISTERS],
    )
