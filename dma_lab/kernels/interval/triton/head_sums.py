"""Gradients of query heads summed into those of the key/value head that they share."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.interval.arguments import heads_of, new_heads
from dma_lab.kernels.interval.tiling import padded
from dma_lab.kernels.interval.triton.tiles import head_ptr, row_ptrs, within
from dma_lab.kernels.sizes import cdiv

_KEYS = 8  # that a program sums


class _SumConfig(NamedTuple):
    """What the kernel is compiled for."""

    D: int
    E: int
    D_PAD: int
    E_PAD: int
    GROUP: int
    """Query heads of a key/value head."""
    KEYS: int


def sum_query_heads(
    expiry: Tensor, dk: Tensor, dv: Tensor, d_bias: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (B, H, N, …) of query heads as those of the key/value heads they share; only keys that ever live are
    read."""
    B, H, N, D = dk.shape
    K, E = expiry.shape[1], dv.shape[-1]
    dk_sum, dv_sum = new_heads(dk, K, D, dtype), new_heads(dk, K, E, dtype)
    d_bias_sum = torch.empty(B, K, N, dtype=torch.float32, device=dk.device)
    config = _SumConfig(D, E, padded(D), padded(E), H // K, _KEYS)
    _sum_heads_kernel[(cdiv(N, _KEYS), B * K)](
        *heads_of(dk, dv, dk_sum, dv_sum), expiry, d_bias, d_bias_sum, K, N, config
    )
    return dk_sum, dv_sum, d_bias_sum


@triton.jit
def _sum_heads_kernel(dk, dv, dk_sum, dv_sum, expiry_ptr, d_bias_ptr, d_bias_sum_ptr, K, N, C: tl.constexpr):
    GROUP: tl.constexpr = C.GROUP
    KEYS: tl.constexpr = C.KEYS
    D_PAD: tl.constexpr = C.D_PAD
    E_PAD: tl.constexpr = C.E_PAD
    kv_row = tl.program_id(1).to(tl.int64)
    b, kv_head = kv_row // K, kv_row % K
    j_s = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    in_range_s = j_s < N
    lives_s = tl.load(expiry_ptr + kv_row * N + j_s, mask=in_range_s, other=0) > j_s
    dk_sd = tl.zeros((KEYS, D_PAD), tl.float32)
    dv_se = tl.zeros((KEYS, E_PAD), tl.float32)
    d_bias_s = tl.zeros((KEYS,), tl.float32)
    for g in tl.static_range(GROUP):  # unrolled, so that no head's loads wait for another's
        head = kv_head * GROUP + g
        dk_rows = row_ptrs(head_ptr(dk, b, head), j_s, dk.n, D_PAD)
        dv_rows = row_ptrs(head_ptr(dv, b, head), j_s, dv.n, E_PAD)
        dk_sd += tl.load(dk_rows, mask=within(lives_s, C.D, D_PAD), other=0.0)
        dv_se += tl.load(dv_rows, mask=within(lives_s, C.E, E_PAD), other=0.0)
        d_bias_s += tl.load(d_bias_ptr + (b * K * GROUP + head) * N + j_s, mask=lives_s, other=0.0)
    dk_rows = row_ptrs(head_ptr(dk_sum, b, kv_head), j_s, dk_sum.n, D_PAD)
    dv_rows = row_ptrs(head_ptr(dv_sum, b, kv_head), j_s, dv_sum.n, E_PAD)
    tl.store(dk_rows, dk_sd.to(dk_sum.ptr.dtype.element_ty), mask=within(in_range_s, C.D, D_PAD))
    tl.store(dv_rows, dv_se.to(dv_sum.ptr.dtype.element_ty), mask=within(in_range_s, C.E, E_PAD))
    tl.store(d_bias_sum_ptr + kv_row * N + j_s, d_bias_s, mask=in_range_s)
