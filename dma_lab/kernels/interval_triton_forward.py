"""Forward pass of interval attention in Triton: a block of queries over the list of keys that live for it.

Softmax is summed against a reference that is known before (``KeyLists.reference_rb``) rather than against a running
maximum: nothing is rescaled, and the product with V runs on while the next logits are made. A query whose sum left
the range in which that is exact is computed again with the running maximum (Milakov & Gimelshein 2018); which of the
two a query gets depends on its own sum alone, so later tokens change nothing. The next tile's indices are loaded a
step ahead, so that the rows themselves can be fetched while the matrix units work.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.key_lists import TILE, KeyLists
from dma_lab.kernels.key_lists_triton import LOG2_E
from dma_lab.kernels.tiling import Tile, heads_together, padded

SOUND = tl.constexpr(2.0**64)
"""A sum within (1 / SOUND, SOUND) lost no key that float32 would have kept in it."""


def interval_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: KeyLists,
    block: int,
    scale: float,
    tile: Tile,
    redo: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Output (B, H, N, D_v) and the base-2 logarithm of each query's softmax sum, float32 (B, H, N).

    Arguments as in ``interval_attention``; ``lists`` are for blocks of ``block`` queries. A query that sees no key has
    output 0 and sum infinity, so that its weights come out 0 in the backward pass; one whose list overflowed has NaN.

    ``redo`` has both as another kernel wrote them, and int32 marks (B * H / heads together, blocks, 2): only in blocks
    with a mark are rows computed whose sum left the exact range, and its tensors returned. ``tile`` then is as tall as
    a block.
    """
    B, H, N, D = q.shape
    K, D_v = k.shape[1], v.shape[-1]
    group = heads_together(H // K)
    queries = tile.rows // group
    if redo is None:
        out = torch.empty(B, N, H, D_v, dtype=q.dtype, device=q.device).transpose(1, 2)
        lse, marks = torch.empty(B, H, N, dtype=torch.float32, device=q.device), None
    else:
        out, lse, marks = redo
    _forward_kernel[(triton.cdiv(N, queries), B * H // group)](
        q,
        k,
        v,
        *lists.of_blocks,
        out,
        lse,
        marks,
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
        HAS_BIAS=lists.bias_rbs is not None,
        FIXED=q.dtype != torch.float16,  # float16 has no room for weights above 1
        WIDE=needs_wide_offsets(k, v),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        **tile.launch,
    )
    return out, lse


def needs_wide_offsets(*tensors: Tensor) -> bool:
    """Whether a row of a head can lie 2^31 elements or more behind its first."""
    return any((tensor.shape[2] - 1) * tensor.stride(2) + tensor.shape[3] >= 2**31 for tensor in tensors)


@triton.jit
def load_rows(
    base_ptr,
    row,
    stride,
    in_range,
    WIDTH: tl.constexpr,
    WIDTH_PAD: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """(rows, WIDTH_PAD) tile of the rows at ``row``; zeros where masked and past WIDTH."""
    column = tl.arange(0, WIDTH_PAD)
    # Narrow offsets take half the integer instructions, which the forward pass is short of.
    offset = row.to(tl.int64) * stride if WIDE else row * stride
    pointer = base_ptr + offset[:, None] + column[None, :]
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
    asks,
    span_ptr,
    query,
    bias_ptr,
    scale_log2,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Base-2 logits (rows, keys): scale * q . k + listed bias, and -inf where the key does not live for the query.

    ``query`` counts from the first of the list's block, as spans do; ``asks`` is the tile's entry of ``mask_rbt``.
    """
    logits = tl.dot(q_md, tl.trans(k_sd), input_precision=PRECISION) * scale_log2
    if HAS_BIAS:
        logits += tl.load(bias_ptr)[None, :]
    if asks != 0:
        span = tl.load(span_ptr)
        live = ((span & 0xFFFF)[None, :] <= query[:, None]) & (query[:, None] < (span >> 16)[None, :])
        logits = tl.where(live, logits, float("-inf"))
    return logits


@triton.jit
def _attend(
    q_md,
    k_ptr,
    v_ptr,
    list_ptr,
    span_ptr,
    mask_ptr,
    list_bias_ptr,
    k_n,
    v_n,
    query,
    total_keys,
    scale_log2,
    D: tl.constexpr,
    D_V: tl.constexpr,
    D_PAD: tl.constexpr,
    D_V_PAD: tl.constexpr,
    KEYS: tl.constexpr,
    TILE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    RUNNING: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Weighted sum of V, sum of weights, and what was taken from the logits: a RUNNING maximum, or 0."""
    acc = tl.zeros((query.shape[0], D_V_PAD), tl.float32)
    total = tl.zeros((query.shape[0],), tl.float32)
    peak = tl.full((query.shape[0],), float("-inf") if RUNNING else 0.0, tl.float32)
    slot = tl.arange(0, KEYS)
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
        if RUNNING:
            new_peak = tl.maximum(peak, tl.max(logits, 1))
            known = tl.where(new_peak == float("-inf"), 0.0, new_peak)
            weights = tl.exp2(logits - known[:, None])
            shrink = tl.exp2(peak - known)
            total = total * shrink + tl.sum(weights, 1)
            acc = tl.dot(weights.to(v_se.dtype), v_se, acc * shrink[:, None], input_precision=PRECISION)
            peak = new_peak
        else:
            weights = tl.exp2(logits)
            total += tl.sum(weights, 1)
            acc = tl.dot(weights.to(v_se.dtype), v_se, acc, input_precision=PRECISION)
        j, asks = next_j, next_asks
    return acc, total, peak


@triton.jit
def _forward_kernel(
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
    lse_ptr,
    marks_ptr,
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
    FIXED: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # The last queries first: they have most keys where lifetimes are unbounded.
    t0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * QUERIES
    if marks_ptr is not None:
        marks = marks_ptr + 2 * (tl.program_id(1) * tl.num_programs(0) + t0 // QUERIES)
        if (tl.load(marks) | tl.load(marks + 1)) == 0:
            return
    head0 = tl.program_id(1) * GROUP
    b, h0 = (head0 // H).to(tl.int64), head0 % H
    kv_head = h0 // heads_a_key
    kv_row = b * (H // heads_a_key) + kv_head
    row = tl.arange(0, GROUP * QUERIES)
    t, head = t0 + row % QUERIES, (h0 + row // QUERIES).to(tl.int64)
    inside = t < N

    k_ptr += b * k_b + kv_head.to(tl.int64) * k_h
    v_ptr += b * v_b + kv_head.to(tl.int64) * v_h
    block = kv_row * tl.cdiv(N, BLOCK) + t0 // BLOCK
    list_ptr += block * capacity
    span_ptr += block * capacity
    mask_ptr += block * (capacity // TILE)
    reference = 0.0
    if HAS_BIAS:
        list_bias_ptr += block * capacity
        reference = tl.load(reference_ptr + block)
    listed = tl.load(total_ptr + block)
    total_keys = tl.maximum(listed, 0)
    scale_log2 = scale * LOG2_E

    column = tl.arange(0, D_PAD)
    q_rows = q_ptr + b * q_b + head[:, None] * q_h + t.to(tl.int64)[:, None] * q_n + column[None, :]
    q_md = tl.load(q_rows, mask=inside[:, None] & (column < D)[None, :], other=0.0)
    query = t % BLOCK
    acc, total, peak = _attend(
        q_md,
        k_ptr,
        v_ptr,
        list_ptr,
        span_ptr,
        mask_ptr,
        list_bias_ptr,
        k_n,
        v_n,
        query,
        total_keys,
        scale_log2,
        D,
        D_V,
        D_PAD,
        D_V_PAD,
        KEYS,
        TILE,
        HAS_BIAS,
        WIDE,
        not FIXED,
        PRECISION,
    )
    written = inside
    if FIXED:
        sound = ((total > 1 / SOUND) & (total < SOUND)) | (t >= N)
        if tl.min(sound.to(tl.int32), 0) == 0:
            acc_again, total_again, peak_again = _attend(
                q_md,
                k_ptr,
                v_ptr,
                list_ptr,
                span_ptr,
                mask_ptr,
                list_bias_ptr,
                k_n,
                v_n,
                query,
                total_keys,
                scale_log2,
                D,
                D_V,
                D_PAD,
                D_V_PAD,
                KEYS,
                TILE,
                HAS_BIAS,
                WIDE,
                True,
                PRECISION,
            )
            acc = tl.where(sound[:, None], acc, acc_again)
            total = tl.where(sound, total, total_again)
            peak = tl.where(sound, peak, peak_again)
        if marks_ptr is not None:  # by its own sum alone, or later tokens would decide which kernel's rounding it gets
            written = inside & (sound == 0)

    sees = total > 0
    acc = acc / tl.where(sees, total, 1.0)[:, None]
    lse = tl.where(sees, reference + peak + tl.log2(tl.where(sees, total, 1.0)), float("inf"))
    acc = tl.where(listed < 0, float("nan"), acc)
    column_v = tl.arange(0, D_V_PAD)
    out_rows = out_ptr + b * o_b + head[:, None] * o_h + t.to(tl.int64)[:, None] * o_n + column_v[None, :]
    tl.store(out_rows, acc.to(out_ptr.dtype.element_ty), mask=written[:, None] & (column_v < D_V)[None, :])
    tl.store(lse_ptr + (b * H + head) * N + t, lse, mask=written)
