"""delta of interval attention's backward pass where lists of live keys are short: from the weights, in Triton.

delta = sum(d_out * out) of a query is also the sum of its softmax weights times their gradients. Where few keys live,
what softmax passes back is a difference of near equals, in which the rounding of ``out`` to 16 bits would show: in bf16
up to 8e-3 of a gradient. Elsewhere the output, which is at hand, costs less.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.interval_triton_forward import load_rows, needs_wide_offsets
from dma_lab.kernels.key_lists import KeyLists
from dma_lab.kernels.key_lists_triton import LOG2_E
from dma_lab.kernels.tiling import SHORT_LIST, dq_tile, heads_together, padded

_PROGRAMS = 264
"""Two for each of an H100's or H200's multiprocessors. Those of one group of heads take its queries in turns, because
short lists lie side by side, at the start above all."""
_LOOK = 256
"""Turns whose lists' lengths a program reads at once, to find the short ones."""


def delta_of_short_lists(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, lists: KeyLists, block: int, scale: float
) -> Tensor:
    """delta, float32 (B, H, N), written only for blocks whose lists hold up to ``SHORT_LIST`` keys and not none."""
    B, H, N, D = q.shape
    K, D_v = k.shape[1], v.shape[-1]
    group, tile = heads_together(H // K), dq_tile(max(D, D_v), q.dtype)
    queries = min(tile.rows // group, block)
    turns = min(triton.cdiv(N, queries), triton.cdiv(_PROGRAMS, B * H // group))
    delta = torch.empty_like(lse)
    _delta_kernel[(turns, B * H // group)](
        q,
        k,
        v,
        lists.index_rbs,
        lists.span_rbs,
        lists.total_rb,
        lists.bias_rbs,
        lists.reference_rb,
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
        BLOCK=block,
        SHORT=SHORT_LIST,
        LOOK=_LOOK,
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
    BLOCK: tl.constexpr,
    SHORT: tl.constexpr,
    LOOK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
):
    head0 = tl.program_id(1) * GROUP
    b, h0 = (head0 // H).to(tl.int64), head0 % H
    kv_head = h0 // heads_a_key
    blocks0 = (b * (H // heads_a_key) + kv_head) * tl.cdiv(N, BLOCK)
    row = tl.arange(0, GROUP * QUERIES)
    head = (h0 + row // QUERIES).to(tl.int64)
    k_ptr += b * k_b + kv_head.to(tl.int64) * k_h
    v_ptr += b * v_b + kv_head.to(tl.int64) * v_h
    column, column_v = tl.arange(0, D_PAD), tl.arange(0, D_V_PAD)
    turns = tl.num_programs(0)
    for first in range(tl.program_id(0) * QUERIES, N, turns * QUERIES * LOOK):
        ahead = first + turns * QUERIES * tl.arange(0, LOOK)
        totals = tl.load(total_ptr + blocks0 + ahead // BLOCK, mask=ahead < N, other=0)
        short = tl.where((totals > 0) & (totals <= SHORT), ahead, N)
        t0 = tl.min(short, 0)
        while t0 < N:
            block = blocks0 + t0 // BLOCK
            total_keys = tl.load(total_ptr + block)
            t = t0 + row % QUERIES
            t_long, inside, query = t.to(tl.int64)[:, None], t < N, t % BLOCK
            q_rows = q_ptr + b * q_b + head[:, None] * q_h + t_long * q_n + column[None, :]
            q_md = tl.load(q_rows, mask=inside[:, None] & (column < D)[None, :], other=0.0)
            do_rows = do_ptr + b * do_b + head[:, None] * do_h + t_long * do_n + column_v[None, :]
            do_me = tl.load(do_rows, mask=inside[:, None] & (column_v < D_V)[None, :], other=0.0)
            statistics = (b * H + head) * N + t
            lse = tl.load(lse_ptr + statistics, mask=inside, other=float("inf"))
            if HAS_BIAS:  # listed biases are relative to the block's reference
                lse -= tl.load(reference_ptr + block)
            delta = tl.zeros((GROUP * QUERIES,), tl.float32)
            for start in range(0, total_keys, KEYS):
                slot = start + tl.arange(0, KEYS)
                listed = block * capacity + slot
                j = tl.load(list_ptr + listed, mask=slot < total_keys, other=0)
                span = tl.load(span_ptr + listed, mask=slot < total_keys, other=0)
                k_sd = load_rows(k_ptr, j, k_n, slot < total_keys, D, D_PAD, True, WIDE)
                v_se = load_rows(v_ptr, j, v_n, slot < total_keys, D_V, D_V_PAD, True, WIDE)
                logits = tl.dot(q_md, tl.trans(k_sd)) * (scale * LOG2_E) - lse[:, None]
                if HAS_BIAS:
                    logits += tl.load(list_bias_ptr + listed, mask=slot < total_keys, other=0.0)[None, :]
                live = ((span & 0xFFFF)[None, :] <= query[:, None]) & (query[:, None] < (span >> 16)[None, :])
                weights = tl.exp2(tl.where(live, logits, float("-inf")))
                delta += tl.sum(weights * tl.dot(do_me, tl.trans(v_se)), 1)
            tl.store(delta_ptr + statistics, delta, mask=inside)
            t0 = tl.min(tl.where(short > t0, short, N), 0)
