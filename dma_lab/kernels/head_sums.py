"""Gradients of query heads summed into those of the key/value head that they share."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.tiling import padded

_KEYS = 8  # that a program sums


def sum_query_heads(
    expiry: Tensor, dk: Tensor, dv: Tensor, d_bias: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (B, H, N, …) of query heads as those of the key/value heads they share; only keys that ever live are
    read."""
    B, H, N, D = dk.shape
    K, D_v = expiry.shape[1], dv.shape[-1]
    dk_sum = torch.empty(B, N, K, D, dtype=dtype, device=dk.device).transpose(1, 2)
    dv_sum = torch.empty(B, N, K, D_v, dtype=dtype, device=dk.device).transpose(1, 2)
    d_bias_sum = torch.empty(B, K, N, dtype=torch.float32, device=dk.device)
    _sum_heads_kernel[(triton.cdiv(N, _KEYS), B * K)](
        expiry,
        dk,
        dv,
        d_bias,
        dk_sum,
        dv_sum,
        d_bias_sum,
        *dk.stride()[:3],
        *dv.stride()[:3],
        *dk_sum.stride()[:3],
        *dv_sum.stride()[:3],
        K,
        N,
        D=D,
        D_V=D_v,
        D_PAD=padded(D),
        D_V_PAD=padded(D_v),
        GROUP=H // K,
        KEYS=_KEYS,
    )
    return dk_sum, dv_sum, d_bias_sum


@triton.jit
def _sum_heads_kernel(
    expiry_ptr,
    dk_ptr,
    dv_ptr,
    d_bias_ptr,
    dk_sum_ptr,
    dv_sum_ptr,
    d_bias_sum_ptr,
    dk_b,
    dk_h,
    dk_n,
    dv_b,
    dv_h,
    dv_n,
    dks_b,
    dks_h,
    dks_n,
    dvs_b,
    dvs_h,
    dvs_n,
    K,
    N,
    D: tl.constexpr,
    D_V: tl.constexpr,
    D_PAD: tl.constexpr,
    D_V_PAD: tl.constexpr,
    GROUP: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Sums over the query heads of a group, reading only keys that ever live."""
    kv_row = tl.program_id(1).to(tl.int64)
    b, kv_head = kv_row // K, kv_row % K
    j = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    in_range = j < N
    lives = tl.load(expiry_ptr + kv_row * N + j, mask=in_range, other=0) > j
    row, column, column_v = j.to(tl.int64)[:, None], tl.arange(0, D_PAD)[None, :], tl.arange(0, D_V_PAD)[None, :]
    dk = tl.zeros((KEYS, D_PAD), tl.float32)
    dv = tl.zeros((KEYS, D_V_PAD), tl.float32)
    d_bias = tl.zeros((KEYS,), tl.float32)
    for g in tl.static_range(GROUP):  # unrolled, so that no head's loads wait for another's
        head = kv_head * GROUP + g
        dk_rows = dk_ptr + b * dk_b + head * dk_h + row * dk_n + column
        dv_rows = dv_ptr + b * dv_b + head * dv_h + row * dv_n + column_v
        dk += tl.load(dk_rows, mask=lives[:, None] & (column < D), other=0.0)
        dv += tl.load(dv_rows, mask=lives[:, None] & (column_v < D_V), other=0.0)
        d_bias += tl.load(d_bias_ptr + (b * K * GROUP + head) * N + j, mask=lives, other=0.0)
    dk_rows = dk_sum_ptr + b * dks_b + kv_head * dks_h + row * dks_n + column
    dv_rows = dv_sum_ptr + b * dvs_b + kv_head * dvs_h + row * dvs_n + column_v
    tl.store(dk_rows, dk.to(dk_sum_ptr.dtype.element_ty), mask=in_range[:, None] & (column < D))
    tl.store(dv_rows, dv.to(dv_sum_ptr.dtype.element_ty), mask=in_range[:, None] & (column_v < D_V))
    tl.store(d_bias_sum_ptr + kv_row * N + j, d_bias, mask=in_range)
