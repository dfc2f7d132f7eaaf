"""dK, dV and dbias of interval attention in Triton: a group of keys over the queries of their lifetimes.

Groups come from ``backward_key_order``, in which neighbours' lives overlap. Every result is written once, by one
program, so the same input gives the same bits.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.interval.arguments import heads_of, needs_wide_offsets, new_heads
from dma_lab.kernels.interval.compaction import LOG2_E
from dma_lab.kernels.interval.key_order import bucket_size, group_of_program, rows_abreast
from dma_lab.kernels.interval.tiling import Tile, padded
from dma_lab.kernels.interval.triton.head_sums import sum_query_heads
from dma_lab.kernels.interval.triton.tiles import head_ptr, load_rows, row_ptrs, within
from dma_lab.kernels.sizes import cdiv


class _KeySizes(NamedTuple):
    """Of the problem, known at launch."""

    R: int
    """B * H: here the query heads of a key/value head are rows of their own."""
    H: int
    group_size: int
    N: int
    scale: float


class _KeyConfig(NamedTuple):
    """What the kernel is compiled for."""

    D: int
    E: int
    D_PAD: int
    E_PAD: int
    QUERIES: int
    KEYS: int
    GROUPS: int
    ABREAST: int
    WIDE: bool
    PRECISION: str


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
    E, group, bucket = v.shape[-1], H // k.shape[1], bucket_size(N)
    dtype = q.dtype if group == 1 else torch.float32
    dk, dv = new_heads(q, H, D, dtype), new_heads(q, H, E, dtype)
    d_bias = torch.empty(B, H, N, dtype=torch.float32, device=q.device)
    config = _KeyConfig(
        D=D,
        E=E,
        D_PAD=padded(D),
        E_PAD=padded(E),
        QUERIES=tile.rows,
        KEYS=tile.keys,
        GROUPS=bucket // tile.keys,
        ABREAST=rows_abreast(N),
        WIDE=needs_wide_offsets(q, d_out),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
    )
    sizes = _KeySizes(B * H, H, group, N, scale)
    _dkv_kernel[(cdiv(N, bucket) * config.GROUPS * B * H,)](
        *heads_of(q, k, v, d_out, dk, dv), bias, expiry, order_rn, lse, delta, d_bias, sizes, config, **tile.launch
    )
    return (dk, dv, d_bias) if group == 1 else sum_query_heads(expiry, dk, dv, d_bias, q.dtype)


@triton.jit
def _dkv_kernel(
    q, k, v, d_out, dk, dv, bias_ptr, expiry_ptr, order_ptr, lse_ptr, delta_ptr, d_bias_ptr, sizes, C: tl.constexpr
):  # fmt: skip
    KEYS: tl.constexpr = C.KEYS
    D_PAD: tl.constexpr = C.D_PAD
    E_PAD: tl.constexpr = C.E_PAD
    row, group = group_of_program(tl.program_id(0), sizes.R, C.GROUPS, C.ABREAST)
    b, head = (row // sizes.H).to(tl.int64), (row % sizes.H).to(tl.int64)
    kv_head = head // sizes.group_size
    kv_row = b * (sizes.H // sizes.group_size) + kv_head
    slot_s = group * KEYS + tl.arange(0, KEYS)
    in_range_s = slot_s < sizes.N
    j_s = tl.load(order_ptr + kv_row * sizes.N + slot_s, mask=in_range_s, other=0)
    expiry_s = tl.load(expiry_ptr + kv_row * sizes.N + j_s, mask=in_range_s, other=0)
    lives_s = expiry_s > j_s
    # Query tiles from `first` to `last` see some of the keys; from `unmasked_from` to `unmasked_to` they see them all.
    # A key that never lives asks for no mask: what it gathers is dropped when storing.
    first = tl.min(tl.where(lives_s, j_s, sizes.N), 0) // C.QUERIES
    last = tl.cdiv(tl.max(tl.where(lives_s, expiry_s, 0), 0), C.QUERIES)
    unmasked_from = tl.minimum(tl.cdiv(tl.max(tl.where(lives_s, j_s, 0), 0), C.QUERIES), last)
    unmasked_to = tl.minimum(tl.min(tl.where(lives_s, expiry_s, sizes.N), 0) // C.QUERIES, last)
    unmasked_to = tl.maximum(unmasked_to, unmasked_from)

    k_sd = load_rows(head_ptr(k, b, kv_head), j_s, k.n, in_range_s, C.D, D_PAD, True, True)
    v_se = load_rows(head_ptr(v, b, kv_head), j_s, v.n, in_range_s, C.E, E_PAD, True, True)
    bias_s = tl.zeros((KEYS,), tl.float32)
    if bias_ptr is not None:
        bias_s = tl.load(bias_ptr + kv_row * sizes.N + j_s, mask=in_range_s, other=0.0).to(tl.float32) * LOG2_E
    dk_sd = tl.zeros((KEYS, D_PAD), tl.float32)
    dv_se = tl.zeros((KEYS, E_PAD), tl.float32)
    d_bias_s = tl.zeros((KEYS,), tl.float32)
    statistics = row.to(tl.int64) * sizes.N
    q_head, do_head = head_ptr(q, b, head), head_ptr(d_out, b, head)
    for phase in tl.static_range(3):  # masked, unmasked, masked
        from_tile = first if phase == 0 else (unmasked_from if phase == 1 else unmasked_to)
        to_tile = unmasked_from if phase == 0 else (unmasked_to if phase == 1 else last)
        dk_sd, dv_se, d_bias_s = _add_query_tiles(
            (dk_sd, dv_se, d_bias_s), from_tile, to_tile, (k_sd, v_se, bias_s, j_s, expiry_s),
            (q_head, q.n, do_head, d_out.n, lse_ptr + statistics, delta_ptr + statistics), sizes, C, phase != 1,
        )  # fmt: skip

    dk_sd = tl.where(lives_s[:, None], dk_sd * sizes.scale, 0.0).to(dk.ptr.dtype.element_ty)
    dv_se = tl.where(lives_s[:, None], dv_se, 0.0).to(dv.ptr.dtype.element_ty)
    # Sums over heads read no key that never lives.
    written_s = (in_range_s & lives_s) if sizes.group_size > 1 else in_range_s
    tl.store(row_ptrs(head_ptr(dk, b, head), j_s, dk.n, D_PAD), dk_sd, mask=within(written_s, C.D, D_PAD))
    tl.store(row_ptrs(head_ptr(dv, b, head), j_s, dv.n, E_PAD), dv_se, mask=within(written_s, C.E, E_PAD))
    tl.store(d_bias_ptr + statistics + j_s, tl.where(lives_s, d_bias_s, 0.0), mask=in_range_s)


@triton.jit
def _add_query_tiles(sums, first, last, keys, queries, sizes, C: tl.constexpr, MASKED: tl.constexpr):
    """What the query tiles [first, last) add; keys are the rows here, so nothing but the inputs is transposed."""
    dk_sd, dv_se, d_bias_s = sums
    k_sd, v_se, bias_s, j_s, expiry_s = keys
    q_head, q_n, do_head, do_n, lse_ptr, delta_ptr = queries
    scale_log2 = sizes.scale * LOG2_E
    for tile in range(first, last):
        t_a = tile * C.QUERIES + tl.arange(0, C.QUERIES)
        inside_a = t_a < sizes.N
        q_ad = load_rows(q_head, t_a, q_n, inside_a, C.D, C.D_PAD, MASKED, C.WIDE)
        if MASKED:
            lse_a = tl.load(lse_ptr + t_a, mask=inside_a, other=float("inf"))
            delta_a = tl.load(delta_ptr + t_a, mask=inside_a, other=0.0)
        else:
            lse_a, delta_a = tl.load(lse_ptr + t_a), tl.load(delta_ptr + t_a)
        logits_sa = tl.dot(k_sd, tl.trans(q_ad), input_precision=C.PRECISION) * scale_log2 + bias_s[:, None]
        p_sa = tl.exp2(logits_sa - lse_a[None, :])
        if MASKED:
            p_sa = tl.where((j_s[:, None] <= t_a[None, :]) & (t_a[None, :] < expiry_s[:, None]), p_sa, 0.0)
        do_ae = load_rows(do_head, t_a, do_n, inside_a, C.E, C.E_PAD, MASKED, C.WIDE)
        dv_se = tl.dot(p_sa.to(do_ae.dtype), do_ae, dv_se, input_precision=C.PRECISION)
        dp_sa = tl.dot(v_se, tl.trans(do_ae), input_precision=C.PRECISION)
        ds_sa = p_sa * (dp_sa - delta_a[None, :])
        d_bias_s += tl.sum(ds_sa, 1)
        dk_sd = tl.dot(ds_sa.to(q_ad.dtype), q_ad, dk_sd, input_precision=C.PRECISION)
    return dk_sd, dv_se, d_bias_s
