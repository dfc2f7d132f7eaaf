"""Forward pass of interval attention in Triton: a block of queries over the list of keys that live for it.

Online softmax (Milakov & Gimelshein 2018; FlashAttention-2, Dao 2023) over rows of K and V gathered by index. The next
tile's indices are loaded a step ahead, so that the rows themselves can be fetched while the matrix units work.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.key_lists import TILE, KeyLists
from dma_lab.kernels.tiling import Tile, heads_together, padded


def interval_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    lists: KeyLists,
    block: int,
    scale: float,
    tile: Tile,
) -> tuple[Tensor, Tensor]:
    """Output (B, H, N, D_v) and the base-2 logarithm of each query's softmax sum, float32 (B, H, N).

    Arguments as in ``interval_attention``; ``lists`` are for blocks of ``block`` queries. A query that sees no key has
    output 0 and sum infinity, so that its weights come out 0 in the backward pass; one whose list overflowed has NaN.
    """
    B, H, N, D = q.shape
    K, D_v = k.shape[1], v.shape[-1]
    group = heads_together(H // K)
    queries = tile.rows // group
    out = torch.empty(B, N, H, D_v, dtype=q.dtype, device=q.device).transpose(1, 2)
    lse = torch.empty(B, H, N, dtype=torch.float32, device=q.device)
    _forward_kernel[(triton.cdiv(N, queries), B * H // group)](
        q,
        k,
        v,
        bias,
        *lists,
        out,
        lse,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *out.stride()[:3],
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
        HAS_BIAS=bias is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        **tile.launch,
    )
    return out, lse


@triton.jit
def load_rows(base_ptr, row, stride, in_range, WIDTH: tl.constexpr, WIDTH_PAD: tl.constexpr, MASKED: tl.constexpr):
    """(rows, WIDTH_PAD) tile of the rows at ``row``; zeros where masked and past WIDTH."""
    column = tl.arange(0, WIDTH_PAD)
    pointer = base_ptr + row.to(tl.int64)[:, None] * stride + column[None, :]
    if MASKED and WIDTH != WIDTH_PAD:
        return tl.load(pointer, mask=in_range[:, None] & (column < WIDTH)[None, :], other=0.0)
    if MASKED:
        return tl.load(pointer, mask=in_range[:, None], other=0.0)
    if WIDTH != WIDTH_PAD:
        return tl.load(pointer, mask=(column < WIDTH)[None, :], other=0.0)
    return tl.load(pointer)


@triton.jit
def logits_of_tile(
    q_md,
    k_sd,
    j,
    whole,
    span_ptr,
    in_list,
    query,
    bias_ptr,
    scale_log2,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Base-2 logits (rows, keys): scale * q . k + bias, and -inf where the key does not live for the query.

    ``query`` counts from the first of the list's block, as spans do (``KeyLists``); ``whole`` tiles need no mask.
    """
    logits = tl.dot(q_md, tl.trans(k_sd), input_precision=PRECISION) * scale_log2
    if HAS_BIAS:
        logits += (tl.load(bias_ptr + j).to(tl.float32) * 1.4426950408889634)[None, :]
    if whole == 0:
        span = tl.load(span_ptr, mask=in_list, other=0)
        live = ((span & 0xFFFF)[None, :] <= query[:, None]) & (query[:, None] < (span >> 16)[None, :])
        logits = tl.where(live, logits, float("-inf"))
    return logits


@triton.jit
def _forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    list_ptr,
    span_ptr,
    whole_ptr,
    total_ptr,
    out_ptr,
    lse_ptr,
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
    PRECISION: tl.constexpr,
):
    # The last queries first: they have most keys where lifetimes are unbounded.
    t0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * QUERIES
    head0 = tl.program_id(1) * GROUP
    b, h0 = (head0 // H).to(tl.int64), head0 % H
    kv_head = h0 // heads_a_key
    kv_row = b * (H // heads_a_key) + kv_head
    row = tl.arange(0, GROUP * QUERIES)
    t, head = t0 + row % QUERIES, (h0 + row // QUERIES).to(tl.int64)
    inside = t < N

    k_ptr += b * k_b + kv_head.to(tl.int64) * k_h
    v_ptr += b * v_b + kv_head.to(tl.int64) * v_h
    if HAS_BIAS:
        bias_ptr += kv_row * N
    block = kv_row * tl.cdiv(N, BLOCK) + t0 // BLOCK
    list_ptr += block * capacity
    span_ptr += block * capacity
    whole_ptr += block * tl.cdiv(capacity, TILE)
    listed = tl.load(total_ptr + block)
    total_keys = tl.maximum(listed, 0)
    scale_log2 = scale * 1.4426950408889634

    column = tl.arange(0, D_PAD)
    q_rows = q_ptr + b * q_b + head[:, None] * q_h + t.to(tl.int64)[:, None] * q_n + column[None, :]
    q_md = tl.load(q_rows, mask=inside[:, None] & (column < D)[None, :], other=0.0)
    acc = tl.zeros((GROUP * QUERIES, D_V_PAD), tl.float32)
    peak = tl.full((GROUP * QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP * QUERIES,), tl.float32)
    slot = tl.arange(0, KEYS)
    query = t % BLOCK
    j = tl.load(list_ptr + slot, mask=slot < total_keys, other=0)
    whole = tl.load(whole_ptr)
    for start in range(0, total_keys, KEYS):
        k_sd = load_rows(k_ptr, j, k_n, None, D, D_PAD, False)
        v_se = load_rows(v_ptr, j, v_n, None, D_V, D_V_PAD, False)
        next_slot = start + KEYS + slot
        next_j = tl.load(list_ptr + next_slot, mask=next_slot < total_keys, other=0)
        next_whole = tl.load(whole_ptr + (start + KEYS) // TILE, mask=start + KEYS < total_keys, other=1)
        here, in_list = span_ptr + start + slot, start + slot < total_keys
        logits = logits_of_tile(q_md, k_sd, j, whole, here, in_list, query, bias_ptr, scale_log2, HAS_BIAS, PRECISION)
        new_peak = tl.maximum(peak, tl.max(logits, 1))
        reference = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(logits - reference[:, None])
        shrink = tl.exp2(peak - reference)
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v_se.dtype), v_se, acc * shrink[:, None], input_precision=PRECISION)
        peak, j, whole = new_peak, next_j, next_whole

    sees = total > 0
    acc = acc / tl.where(sees, total, 1.0)[:, None]
    lse = tl.where(sees, peak + tl.log2(tl.where(sees, total, 1.0)), float("inf"))
    acc = tl.where(listed < 0, float("nan"), acc)
    column_v = tl.arange(0, D_V_PAD)
    out_rows = out_ptr + b * o_b + head[:, None] * o_h + t.to(tl.int64)[:, None] * o_n + column_v[None, :]
    tl.store(out_rows, acc.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (column_v < D_V)[None, :])
    tl.store(lse_ptr + (b * H + head) * N + t, lse, mask=inside)
