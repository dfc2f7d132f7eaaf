"""delta of interval attention's backward pass where lists of live keys are short: from the weights, in Triton.

delta = sum(d_out * out) of a query is also the sum of its softmax weights times their gradients. Where few keys live,
what softmax passes back is a difference of near equals, in which the rounding of ``out`` to 16 bits would show: in bf16
up to 8e-3 of a gradient. Elsewhere the output, which is at hand, costs less.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.interval_triton_forward import load_rows, logits_of_tile, needs_wide_offsets
from dma_lab.kernels.key_lists import TILE, KeyLists
from dma_lab.kernels.key_lists_triton import LOG2_E
from dma_lab.kernels.tiling import SHORT_LIST, dq_tile, heads_together, padded


def delta_of_short_lists(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, lists: KeyLists, block: int, scale: float
) -> Tensor:
    """delta, float32 (B, H, N), written only for blocks whose lists hold up to ``SHORT_LIST`` keys and not none."""
    B, H, N, D = q.shape
    K, D_v = k.shape[1], v.shape[-1]
    group, tile = heads_together(H // K), dq_tile(max(D, D_v), q.dtype)
    queries = min(tile.rows // group, block)
    delta = torch.empty_like(lse)
    _delta_kernel[(triton.cdiv(N, queries), B * H // group)](
        q,
        k,
        v,
        *lists.of_blocks,
        d_out,
        lse,
        delta,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *d_out.stride()[:3],
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
        SHORT=SHORT_LIST,
        HAS_BIAS=lists.bias_rbs is not None,
        WIDE=needs_wide_offsets(k, v),
        **tile.launch,
    )
    return delta


@triton.jit
def _delta_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    list_ptr,
    span_ptr,
    mask_ptr,
    total_ptr,
    list_bias_ptr,
    reference_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    do_b,
    do_h,
    do_n,
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
    SHORT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
):
    t0 = tl.program_id(0) * QUERIES
    head0 = tl.program_id(1) * GROUP
    b, h0 = (head0 // H).to(tl.int64), head0 % H
    kv_head = h0 // heads_a_key
    block = (b * (H // heads_a_key) + kv_head) * tl.cdiv(N, BLOCK) + t0 // BLOCK
    total_keys = tl.load(total_ptr + block)
    if (total_keys <= 0) | (total_keys > SHORT):
        return
    row = tl.arange(0, GROUP * QUERIES)
    t, head = t0 + row % QUERIES, (h0 + row // QUERIES).to(tl.int64)
    t_long, inside, query = t.to(tl.int64)[:, None], t < N, t % BLOCK
    k_ptr += b * k_b + kv_head.to(tl.int64) * k_h
    v_ptr += b * v_b + kv_head.to(tl.int64) * v_h
    list_ptr += block * capacity
    span_ptr += block * capacity
    mask_ptr += block * (capacity // TILE)

    column, column_v = tl.arange(0, D_PAD), tl.arange(0, D_V_PAD)
    q_rows = q_ptr + b * q_b + head[:, None] * q_h + t_long * q_n + column[None, :]
    q_md = tl.load(q_rows, mask=inside[:, None] & (column < D)[None, :], other=0.0)
    do_rows = do_ptr + b * do_b + head[:, None] * do_h + t_long * do_n + column_v[None, :]
    do_me = tl.load(do_rows, mask=inside[:, None] & (column_v < D_V)[None, :], other=0.0)
    statistics = (b * H + head) * N + t
    lse = tl.load(lse_ptr + statistics, mask=inside, other=float("inf"))
    if HAS_BIAS:  # listed biases are relative to the block's reference
        list_bias_ptr += block * capacity
        lse -= tl.load(reference_ptr + block)

    delta = tl.zeros((GROUP * QUERIES,), tl.float32)
    for start in range(0, total_keys, KEYS):
        slot = start + tl.arange(0, KEYS)
        j = tl.load(list_ptr + slot, mask=slot < total_keys, other=0)
        k_sd = load_rows(k_ptr, j, k_n, None, D, D_PAD, False, WIDE)
        v_se = load_rows(v_ptr, j, v_n, None, D_V, D_V_PAD, False, WIDE)
        logits = logits_of_tile(
            q_md,
            k_sd,
            tl.load(mask_ptr + start // TILE),
            span_ptr + slot,
            query,
            list_bias_ptr + slot if HAS_BIAS else None,
            scale * LOG2_E,
            HAS_BIAS,
            "tf32",
        )
        delta += tl.sum(tl.exp2(logits - lse[:, None]) * tl.dot(do_me, tl.trans(v_se)), 1)
    tl.store(delta_ptr + statistics, delta, mask=inside)
