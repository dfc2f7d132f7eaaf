"""dQ of interval attention in Triton: a block of queries over its list of live keys, as in the forward pass.

Every result is written once, by one program, so the same input gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.interval_triton_forward import load_rows, logits_of_tile, needs_wide_offsets
from dma_lab.kernels.key_lists import TILE, KeyLists
from dma_lab.kernels.key_lists_triton import LOG2_E
from dma_lab.kernels.tiling import SHORT_LIST, Tile, heads_together, padded


def interval_backward_dq(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    delta: Tensor,
    lists: KeyLists,
    block: int,
    scale: float,
    tile: Tile,
) -> Tensor:
    """dq. Also completes ``delta`` in place: sum(d_out * out) wherever ``delta_of_short_lists`` left it unwritten, of
    float32 inputs everywhere.
    """
    B, H, N, D = q.shape
    K, D_v = k.shape[1], v.shape[-1]
    group = heads_together(H // K)
    queries = min(tile.rows // group, block)
    dq = torch.empty(B, N, H, D, dtype=q.dtype, device=q.device).transpose(1, 2)
    _dq_kernel[(triton.cdiv(N, queries), B * H // group)](
        q,
        k,
        v,
        *lists.of_blocks,
        out,
        d_out,
        lse,
        delta,
        dq,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *out.stride()[:3],
        *d_out.stride()[:3],
        *dq.stride()[:3],
        H,
        H // K,
        N,
        lists.index_rbs.shape[2],
        scale,
        D=D,
        D_V=D_v,
        D_PAD=padded(D),
        D_V_PAD=padded(D_v),
        GROUP=group,
        QUERIES=queries,
        KEYS=tile.keys,
        TILE=TILE,
        BLOCK=block,
        HAS_BIAS=lists.bias_rbs is not None,
        WIDE=needs_wide_offsets(k, v),
        SHORT=0 if q.dtype == torch.float32 else SHORT_LIST,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        **tile.launch,
    )
    return dq


@triton.jit
def _dq_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    list_ptr,
    span_ptr,
    mask_ptr,
    total_ptr,
    list_bias_ptr,
    reference_ptr,
    out_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    o_b,
    o_h,
    o_n,
    do_b,
    do_h,
    do_n,
    dq_b,
    dq_h,
    dq_n,
    H,
    heads_a_key,
    N,
    capacity,
    scale,
    D: tl.constexpr,
    D_V: tl.constexpr,
    D_PAD: tl.constexpr,
    D_V_PAD: tl.constexpr,
    GROUP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    SHORT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    t0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * QUERIES
    head0 = tl.program_id(1) * GROUP
    b, h0 = (head0 // H).to(tl.int64), head0 % H
    kv_head = h0 // heads_a_key
    kv_row = b * (H // heads_a_key) + kv_head
    row = tl.arange(0, GROUP * QUERIES)
    t, head = t0 + row % QUERIES, (h0 + row // QUERIES).to(tl.int64)
    t_long, inside = t.to(tl.int64)[:, None], t < N

    k_ptr += b * k_b + kv_head.to(tl.int64) * k_h
    v_ptr += b * v_b + kv_head.to(tl.int64) * v_h
    block = kv_row * tl.cdiv(N, BLOCK) + t0 // BLOCK
    list_ptr += block * capacity
    span_ptr += block * capacity
    mask_ptr += block * (capacity // TILE)
    total_keys = tl.maximum(tl.load(total_ptr + block), 0)
    scale_log2 = scale * LOG2_E

    column, column_v = tl.arange(0, D_PAD), tl.arange(0, D_V_PAD)
    mask_d = inside[:, None] & (column < D)[None, :]
    mask_v = inside[:, None] & (column_v < D_V)[None, :]
    q_md = tl.load(q_ptr + b * q_b + head[:, None] * q_h + t_long * q_n + column[None, :], mask=mask_d, other=0.0)
    do_rows = do_ptr + b * do_b + head[:, None] * do_h + t_long * do_n + column_v[None, :]
    do_me = tl.load(do_rows, mask=mask_v, other=0.0)
    statistics = (b * H + head) * N + t
    delta = tl.load(delta_ptr + statistics, mask=inside, other=0.0)
    if (total_keys == 0) | (total_keys > SHORT):
        o_rows = out_ptr + b * o_b + head[:, None] * o_h + t_long * o_n + column_v[None, :]
        out_me = tl.load(o_rows, mask=mask_v, other=0.0)
        delta = tl.sum(do_me.to(tl.float32) * out_me.to(tl.float32), 1)
        tl.store(delta_ptr + statistics, delta, mask=inside)
    lse = tl.load(lse_ptr + statistics, mask=inside, other=float("inf"))
    if HAS_BIAS:  # listed biases are relative to the block's reference
        list_bias_ptr += block * capacity
        lse -= tl.load(reference_ptr + block)

    dq = tl.zeros((GROUP * QUERIES, D_PAD), tl.float32)
    slot = tl.arange(0, KEYS)
    query = t % BLOCK
    j = tl.load(list_ptr + slot, mask=slot < total_keys, other=0)
    asks = tl.load(mask_ptr)
    for start in range(0, total_keys, KEYS):
        k_sd = load_rows(k_ptr, j, k_n, None, D, D_PAD, False, WIDE)
        v_se = load_rows(v_ptr, j, v_n, None, D_V, D_V_PAD, False, WIDE)
        next_slot = start + KEYS + slot
        next_j = tl.load(list_ptr + next_slot, mask=next_slot < total_keys, other=0)
        next_asks = tl.load(mask_ptr + (start + KEYS) // TILE, mask=start + KEYS < total_keys, other=0)
        logits = logits_of_tile(
            q_md,
            k_sd,
            asks,
            span_ptr + start + slot,
            query,
            list_bias_ptr + start + slot if HAS_BIAS else None,
            scale_log2,
            HAS_BIAS,
            PRECISION,
        )
        weights = tl.exp2(logits - lse[:, None])
        d_weights = tl.dot(do_me, tl.trans(v_se), input_precision=PRECISION)
        d_logits = weights * (d_weights - delta[:, None])
        dq = tl.dot(d_logits.to(k_sd.dtype), k_sd, dq, input_precision=PRECISION)
        j, asks = next_j, next_asks
    dq_rows = dq_ptr + b * dq_b + head[:, None] * dq_h + t_long * dq_n + column[None, :]
    tl.store(dq_rows, (dq * scale).to(dq_ptr.dtype.element_ty), mask=mask_d)
