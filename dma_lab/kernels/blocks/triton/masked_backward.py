"""Backward pass of block-sparse attention under a mask: dQ by tiles of queries, then dK and dV by tiles of keys.

Every result is written once, by one program, so the same input gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.blocks.arguments import masked_config, masked_sizes
from dma_lab.kernels.blocks.tiling import masked_dkv_tile, masked_dq_tile
from dma_lab.kernels.blocks.triton.masked_forward import (
    bits_of_keys,
    bits_of_rows,
    is_read,
    keys_of_queries,
    load_keys_of_tile,
)
from dma_lab.kernels.interval.arguments import heads_of, new_heads
from dma_lab.kernels.interval.compaction import LOG2_E
from dma_lab.kernels.interval.triton.tiles import (
    head_ptr,
    heads_of_program,
    load_queries,
    load_rows,
    query_ptrs,
    row_ptrs,
    within,
)
from dma_lab.kernels.sizes import cdiv


def masked_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, bits_bkn: Tensor, start_bn: Tensor, end_bn: Tensor, out: Tensor,
    lse: Tensor, block: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk and dv."""
    B, H, N, D = q.shape
    K = k.shape[1]
    dq, dk, dv = new_heads(q, H, D), new_heads(q, K, D), new_heads(q, K, D)
    delta, sizes = torch.empty_like(lse), masked_sizes(q, k, scale)
    tile = masked_dq_tile(D, q.dtype)
    config = masked_config(q, k, v, block, tile)
    _dq_kernel[(cdiv(N, config.QUERIES), B * H // config.GROUP)](
        *heads_of(q, k, v, out, d_out, dq), lse, delta, bits_bkn, start_bn, sizes, config, **tile.launch
    )
    tile = masked_dkv_tile(D, q.dtype)
    config = masked_config(q, k, v, block, tile)
    _dkv_kernel[(cdiv(N, config.KEYS), B * K)](
        *heads_of(q, k, v, d_out, dk, dv), lse, delta, bits_bkn, start_bn, end_bn, sizes, config, **tile.launch
    )
    return dq, dk, dv


@triton.jit
def _dq_kernel(q, k, v, out, d_out, dq, lse_ptr, delta_ptr, bits_ptr, start_ptr, sizes, C: tl.constexpr):
    """Writes delta, sum(d_out * out) of every query, as well."""
    ROWS: tl.constexpr = C.GROUP * C.QUERIES
    D_PAD: tl.constexpr = C.D_PAD
    t0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * C.QUERIES
    b, kv_head, _, head_a, t_a = heads_of_program(sizes, C)
    t_a += t0
    inside_a = t_a < sizes.N
    k_head, v_head, start = head_ptr(k, b, kv_head), head_ptr(v, b, kv_head), start_ptr + b * sizes.N
    q_ad = load_queries(q, b, head_a, t_a, inside_a, C.D, D_PAD)
    do_ad = load_queries(d_out, b, head_a, t_a, inside_a, C.D, D_PAD)
    out_ad = load_queries(out, b, head_a, t_a, inside_a, C.D, D_PAD)
    delta_a = tl.sum(do_ad.to(tl.float32) * out_ad.to(tl.float32), 1)
    statistics_a = (b * sizes.H + head_a) * sizes.N + t_a
    tl.store(delta_ptr + statistics_a, delta_a, mask=inside_a)
    lse_a = tl.load(lse_ptr + statistics_a, mask=inside_a, other=float("inf"))
    bits_a = bits_of_rows(bits_ptr, b, kv_head, t_a, inside_a, sizes)
    start_a = tl.load(start + t_a, mask=inside_a, other=0)
    dq_ad = tl.zeros((ROWS, D_PAD), tl.float32)
    rows, keys = (q_ad, do_ad, lse_a, delta_a, bits_a, start_a, t_a), (k_head, k.n, v_head, v.n, start)
    first, inner, last = keys_of_queries(start, t0, sizes, C)
    dq_ad = _add_dq(dq_ad, rows, keys, first, inner, sizes, C, False)
    dq_ad = _add_dq(dq_ad, rows, keys, inner, last, sizes, C, True)
    result_ad = (dq_ad * sizes.scale).to(dq.ptr.dtype.element_ty)
    tl.store(query_ptrs(dq, b, head_a, t_a, D_PAD), result_ad, mask=within(inside_a, C.D, D_PAD))


@triton.jit
def _add_dq(dq_ad, rows, keys, begin, end, sizes, C: tl.constexpr, EDGE: tl.constexpr):
    q_ad, do_ad, lse_a, delta_a, bits_a, start_a, t_a = rows
    scale_log2 = sizes.scale * LOG2_E
    for first in range(begin, end, C.KEYS):
        k_sd, v_sd, j_s, bit_s = load_keys_of_tile(keys, first, sizes, C, EDGE)
        logits_as = tl.dot(q_ad, tl.trans(k_sd), input_precision=C.PRECISION) * scale_log2
        live = is_read(bits_a, bit_s, start_a, t_a, j_s, EDGE)
        p_as = tl.exp2(tl.where(live, logits_as - lse_a[:, None], float("-inf")))
        dp_as = tl.dot(do_ad, tl.trans(v_sd), input_precision=C.PRECISION)
        ds_as = p_as * (dp_as - delta_a[:, None])
        dq_ad = tl.dot(ds_as.to(k_sd.dtype), k_sd, dq_ad, input_precision=C.PRECISION)
    return dq_ad


@triton.jit
def _dkv_kernel(q, k, v, d_out, dk, dv, lse_ptr, delta_ptr, bits_ptr, start_ptr, end_ptr, sizes, C: tl.constexpr):
    KEYS: tl.constexpr = C.KEYS
    D_PAD: tl.constexpr = C.D_PAD
    kv_heads = sizes.H // sizes.group_size
    b, kv_head = (tl.program_id(1) // kv_heads).to(tl.int64), (tl.program_id(1) % kv_heads).to(tl.int64)
    j0 = tl.program_id(0) * C.KEYS
    j_s = j0 + tl.arange(0, C.KEYS)
    inside_s, row_s = j_s < sizes.N, tl.minimum(j_s, sizes.N - 1)
    k_sd = load_rows(head_ptr(k, b, kv_head), row_s, k.n, None, C.D, D_PAD, False, C.WIDE)
    v_sd = load_rows(head_ptr(v, b, kv_head), row_s, v.n, None, C.D, D_PAD, False, C.WIDE)
    start, end = start_ptr + b * sizes.N, end_ptr + b * sizes.N
    bit_s, end_s = bits_of_keys(start, j_s, row_s, C), tl.load(end + row_s)
    last = tl.load(end + tl.minimum(j0 + C.KEYS, sizes.N) - 1)
    row_a = tl.arange(0, C.GROUP * C.QUERIES)
    dk_sd = tl.zeros((KEYS, D_PAD), tl.float32)
    dv_sd = tl.zeros((KEYS, D_PAD), tl.float32)
    scale_log2 = sizes.scale * LOG2_E
    for subgroup in range(sizes.group_size // C.GROUP):
        head_a = kv_head * sizes.group_size + subgroup * C.GROUP + row_a // C.QUERIES
        statistics_a = (b * sizes.H + head_a) * sizes.N
        for t0 in range(j0, last, C.QUERIES):
            t_a = t0 + row_a % C.QUERIES
            inside_a = t_a < last
            q_ad = load_queries(q, b, head_a, t_a, inside_a, C.D, D_PAD)
            do_ad = load_queries(d_out, b, head_a, t_a, inside_a, C.D, D_PAD)
            bits_a = bits_of_rows(bits_ptr, b, kv_head, t_a, inside_a, sizes)
            lse_a = tl.load(lse_ptr + statistics_a + t_a, mask=inside_a, other=float("inf"))
            delta_a = tl.load(delta_ptr + statistics_a + t_a, mask=inside_a, other=0.0)
            logits_sa = tl.dot(k_sd, tl.trans(q_ad), input_precision=C.PRECISION) * scale_log2
            live = ((bits_a[None, :] & bit_s[:, None]) != 0) & (j_s[:, None] <= t_a[None, :])
            live = live & (t_a[None, :] < end_s[:, None])
            p_sa = tl.exp2(tl.where(live, logits_sa - lse_a[None, :], float("-inf")))
            dv_sd = tl.dot(p_sa.to(do_ad.dtype), do_ad, dv_sd, input_precision=C.PRECISION)
            dp_sa = tl.dot(v_sd, tl.trans(do_ad), input_precision=C.PRECISION)
            ds_sa = (p_sa * (dp_sa - delta_a[None, :])).to(q_ad.dtype)
            dk_sd = tl.dot(ds_sa, q_ad, dk_sd, input_precision=C.PRECISION)
    dk_rows = row_ptrs(head_ptr(dk, b, kv_head), j_s, dk.n, D_PAD)
    dv_rows = row_ptrs(head_ptr(dv, b, kv_head), j_s, dv.n, D_PAD)
    tl.store(dk_rows, (dk_sd * sizes.scale).to(dk.ptr.dtype.element_ty), mask=within(inside_s, C.D, D_PAD))
    tl.store(dv_rows, dv_sd.to(dv.ptr.dtype.element_ty), mask=within(inside_s, C.D, D_PAD))
