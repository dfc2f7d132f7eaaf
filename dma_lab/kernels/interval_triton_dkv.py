"""dK, dV and dbias of interval attention in Triton: a group of keys over the queries of their lifetimes.

Groups come from ``backward_key_order``, in which neighbours' lives overlap. Every result is written once, by one
program, so the same input gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.head_sums import sum_query_heads
from dma_lab.kernels.interval_triton_forward import load_rows, needs_wide_offsets
from dma_lab.kernels.key_lists_triton import LOG2_E
from dma_lab.kernels.key_order import bucket_size, group_of_program, rows_abreast
from dma_lab.kernels.tiling import Tile, padded


def interval_backward_dkv(
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
    tile: Tile,
) -> tuple[Tensor, Tensor, Tensor]:
    """dk, dv and dbias (float32); keys that never live get zeros.

    Query heads of a group are programs of their own, in float32, and summed afterwards: otherwise the keys that live
    longest would keep a few programs busy long after the others.
    """
    B, H, N, D = q.shape
    K, D_v = k.shape[1], v.shape[-1]
    group, bucket = H // K, bucket_size(N)

    def new(heads: int, width: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(B, N, heads, width, dtype=dtype, device=q.device).transpose(1, 2)

    dtype = q.dtype if group == 1 else torch.float32
    dk, dv = new(H, D, dtype), new(H, D_v, dtype)
    d_bias = torch.empty(B, H, N, dtype=torch.float32, device=q.device)
    _dkv_kernel[(triton.cdiv(N, bucket) * (bucket // tile.keys) * B * H,)](
        q,
        k,
        v,
        bias,
        expiry,
        order_rn,
        d_out,
        lse,
        delta,
        dk,
        dv,
        d_bias,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *d_out.stride()[:3],
        *dk.stride()[:3],
        *dv.stride()[:3],
        B * H,
        H,
        group,
        N,
        scale,
        D=D,
        D_V=D_v,
        D_PAD=padded(D),
        D_V_PAD=padded(D_v),
        QUERIES=tile.rows,
        KEYS=tile.keys,
        GROUPS=bucket // tile.keys,
        ABREAST=rows_abreast(N),
        HAS_BIAS=bias is not None,
        WIDE=needs_wide_offsets(q, d_out),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        **tile.launch,
    )
    return (dk, dv, d_bias) if group == 1 else sum_query_heads(expiry, dk, dv, d_bias, q.dtype)


@triton.jit
def _dkv_tiles(
    dk,
    dv,
    d_bias,
    first,
    last,
    k_sd,
    v_se,
    bias,
    j,
    expiry,
    q_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    q_n,
    do_n,
    N,
    scale_log2,
    D: tl.constexpr,
    D_V: tl.constexpr,
    D_PAD: tl.constexpr,
    D_V_PAD: tl.constexpr,
    QUERIES: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What the query tiles [first, last) add; keys are the rows here, so nothing but the inputs is transposed."""
    for tile in range(first, last):
        t = tile * QUERIES + tl.arange(0, QUERIES)
        inside = t < N
        q_md = load_rows(q_ptr, t, q_n, inside, D, D_PAD, MASKED, WIDE)
        if MASKED:
            lse = tl.load(lse_ptr + t, mask=inside, other=float("inf"))
            delta = tl.load(delta_ptr + t, mask=inside, other=0.0)
        else:
            lse, delta = tl.load(lse_ptr + t), tl.load(delta_ptr + t)
        logits = tl.dot(k_sd, tl.trans(q_md), input_precision=PRECISION) * scale_log2 + bias[:, None]
        weights = tl.exp2(logits - lse[None, :])
        if MASKED:
            weights = tl.where((j[:, None] <= t[None, :]) & (t[None, :] < expiry[:, None]), weights, 0.0)
        do_me = load_rows(do_ptr, t, do_n, inside, D_V, D_V_PAD, MASKED, WIDE)
        dv = tl.dot(weights.to(do_me.dtype), do_me, dv, input_precision=PRECISION)
        d_weights = tl.dot(v_se, tl.trans(do_me), input_precision=PRECISION)
        d_logits = weights * (d_weights - delta[None, :])
        d_bias += tl.sum(d_logits, 1)
        dk = tl.dot(d_logits.to(q_md.dtype), q_md, dk, input_precision=PRECISION)
    return dk, dv, d_bias


@triton.jit
def _dkv_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    expiry_ptr,
    order_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    d_bias_ptr,
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
    scale,
    D: tl.constexpr,
    D_V: tl.constexpr,
    D_PAD: tl.constexpr,
    D_V_PAD: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    GROUPS: tl.constexpr,
    ABREAST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row, group = group_of_program(tl.program_id(0), rows, GROUPS, ABREAST)
    b, head = (row // H).to(tl.int64), (row % H).to(tl.int64)
    kv_head = head // group_size
    kv_row = b * (H // group_size) + kv_head
    slot = group * KEYS + tl.arange(0, KEYS)
    in_range = slot < N
    j = tl.load(order_ptr + kv_row * N + slot, mask=in_range, other=0)
    expiry = tl.load(expiry_ptr + kv_row * N + j, mask=in_range, other=0)
    lives = expiry > j
    # Query tiles from `first` to `last` see some of the keys; from `unmasked_from` to `unmasked_to` they see them all.
    # A key that never lives asks for no mask: what it gathers is dropped when storing.
    first = tl.min(tl.where(lives, j, N), 0) // QUERIES
    last = tl.cdiv(tl.max(tl.where(lives, expiry, 0), 0), QUERIES)
    unmasked_from = tl.minimum(tl.cdiv(tl.max(tl.where(lives, j, 0), 0), QUERIES), last)
    unmasked_to = tl.minimum(tl.min(tl.where(lives, expiry, N), 0) // QUERIES, last)
    unmasked_to = tl.maximum(unmasked_to, unmasked_from)

    k_sd = load_rows(k_ptr + b * k_b + kv_head * k_h, j, k_n, in_range, D, D_PAD, True, True)
    v_se = load_rows(v_ptr + b * v_b + kv_head * v_h, j, v_n, in_range, D_V, D_V_PAD, True, True)
    bias = tl.zeros((KEYS,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + kv_row * N + j, mask=in_range, other=0.0).to(tl.float32) * LOG2_E
    dk = tl.zeros((KEYS, D_PAD), tl.float32)
    dv = tl.zeros((KEYS, D_V_PAD), tl.float32)
    d_bias = tl.zeros((KEYS,), tl.float32)
    scale_log2 = scale * LOG2_E
    statistics = row.to(tl.int64) * N
    for phase in tl.static_range(3):
        from_tile = first if phase == 0 else (unmasked_from if phase == 1 else unmasked_to)
        to_tile = unmasked_from if phase == 0 else (unmasked_to if phase == 1 else last)
        dk, dv, d_bias = _dkv_tiles(
            dk,
            dv,
            d_bias,
            from_tile,
            to_tile,
            k_sd,
            v_se,
            bias,
            j,
            expiry,
            q_ptr + b * q_b + head * q_h,
            do_ptr + b * do_b + head * do_h,
            lse_ptr + statistics,
            delta_ptr + statistics,
            q_n,
            do_n,
            N,
            scale_log2,
            D,
            D_V,
            D_PAD,
            D_V_PAD,
            QUERIES,
            phase != 1,
            WIDE,
            PRECISION,
        )

    row_long = j.to(tl.int64)[:, None]
    column, column_v = tl.arange(0, D_PAD), tl.arange(0, D_V_PAD)
    dk = tl.where(lives[:, None], dk * scale, 0.0).to(dk_ptr.dtype.element_ty)
    dv = tl.where(lives[:, None], dv, 0.0).to(dv_ptr.dtype.element_ty)
    dk_rows = dk_ptr + b * dk_b + head * dk_h + row_long * dk_n + column[None, :]
    dv_rows = dv_ptr + b * dv_b + head * dv_h + row_long * dv_n + column_v[None, :]
    # Sums over heads read no key that never lives.
    written = (in_range & lives) if group_size > 1 else in_range
    tl.store(dk_rows, dk, mask=written[:, None] & (column < D)[None, :])
    tl.store(dv_rows, dv, mask=written[:, None] & (column_v < D_V)[None, :])
    tl.store(d_bias_ptr + statistics + j, tl.where(lives, d_bias, 0.0), mask=in_range)
