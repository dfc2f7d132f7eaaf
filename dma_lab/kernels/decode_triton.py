"""Decoding in Triton: admission is one program a key/value head; attention splits the cache among programs.

The split's partial results are summed in a fixed order by a second kernel (flash decoding), so the same input gives the
same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.tiling import padded

_KEYS = 64
_SHARE = 256  # slots a program takes


@torch.library.custom_op("dma_lab::admit_key", mutates_args=("k_cache", "v_cache", "score_cache", "arrived_cache"))
def admit_key_triton(
    k_cache: Tensor,
    v_cache: Tensor,
    score_cache: Tensor,
    arrived_cache: Tensor,
    k: Tensor,
    v: Tensor,
    score: Tensor,
    position: int,
    window: int,
    recent: int,
) -> None:
    """Arguments as in ``admit_key``."""
    B, K, S, D = k_cache.shape
    D_v = v_cache.shape[-1]
    k, v, score = k.contiguous(), v.contiguous(), score.contiguous()
    with torch.cuda.device_of(k):
        _admit_kernel[(B * K,)](
            k_cache,
            v_cache,
            score_cache,
            arrived_cache,
            k,
            v,
            score,
            torch.iinfo(torch.int32).max,
            torch.finfo(torch.float32).max,
            position,
            window,
            recent,
            S,
            D=D,
            D_V=D_v,
            D_PAD=padded(D),
            D_V_PAD=padded(D_v),
            S_PAD=triton.next_power_of_2(S),
            num_warps=8,
        )


@torch.library.custom_op("dma_lab::interval_attention_decode", mutates_args=())
def interval_attention_decode_triton(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, arrived_cache: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """Arguments and result as in ``interval_attention_decode``."""
    B, K, S, D = k_cache.shape
    H, D_v = q.shape[1], v_cache.shape[-1]
    group, shares = H // K, triton.cdiv(S, _SHARE)
    q, k_cache, v_cache = q.contiguous(), k_cache.contiguous(), v_cache.contiguous()
    arrived_cache, bias = arrived_cache.contiguous(), None if bias is None else bias.contiguous()
    out = torch.empty(B, H, 1, D_v, dtype=v_cache.dtype, device=q.device)
    partial = torch.empty(B * H, shares, D_v, dtype=torch.float32, device=q.device)
    peak = torch.empty(B * H, shares, dtype=torch.float32, device=q.device)
    total = torch.empty_like(peak)
    with torch.cuda.device_of(q):
        _decode_kernel[(shares, B * K)](
            q,
            k_cache,
            v_cache,
            arrived_cache,
            bias,
            partial,
            peak,
            total,
            S,
            scale,
            GROUP=group,
            GROUP_PAD=max(16, triton.next_power_of_2(group)),
            D=D,
            D_V=D_v,
            D_PAD=padded(D),
            D_V_PAD=padded(D_v),
            KEYS=_KEYS if max(D, D_v) <= 128 else _KEYS // 2,
            SHARE=_SHARE,
            HAS_BIAS=bias is not None,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            num_warps=4,
            num_stages=3 if q.dtype != torch.float32 else 2,
        )
        _combine_kernel[(B * H,)](
            partial,
            peak,
            total,
            out,
            shares,
            D_V=D_v,
            D_V_PAD=padded(D_v),
            SHARES_PAD=triton.next_power_of_2(shares),
        )
    return out


@interval_attention_decode_triton.register_fake
def _(q: Tensor, k_cache: Tensor, v_cache: Tensor, arrived_cache: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    return v_cache.new_empty(q.shape[0], q.shape[1], 1, v_cache.shape[-1])


@triton.jit(do_not_specialize=["position"])
def _admit_kernel(
    k_cache_ptr,
    v_cache_ptr,
    score_cache_ptr,
    arrived_ptr,
    k_ptr,
    v_ptr,
    score_ptr,
    NEVER,
    LARGEST,
    position,
    window,
    recent,
    S,
    D: tl.constexpr,
    D_V: tl.constexpr,
    D_PAD: tl.constexpr,
    D_V_PAD: tl.constexpr,
    S_PAD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, S_PAD)
    inside = slot < S
    arrived = tl.load(arrived_ptr + row * S + slot, mask=inside, other=-1)
    held_score = tl.load(score_cache_ptr + row * S + slot, mask=inside, other=0.0)
    score = tl.load(score_ptr + row).to(tl.float32)

    # Comparable: NaN is above all others, as infinity, which is then the largest number.
    held_worth = tl.where(held_score == held_score, tl.minimum(held_score, LARGEST), float("inf"))
    worth = tl.where(score == score, tl.minimum(score, LARGEST), float("inf"))
    best = arrived >= 0
    lowest = tl.min(tl.where(best, held_worth, float("inf")), 0)
    oldest = tl.min(tl.where(best & (held_worth == lowest), arrived, NEVER), 0)
    # Where the window is not full nothing has to make way, as if the new key were better than all.
    full = tl.sum(best.to(tl.int32), 0) >= window
    enters = tl.where(full, worth, float("inf")) >= lowest
    leaver = tl.where(enters, tl.where(full, oldest, NEVER), NEVER)
    arrived = tl.where(arrived == leaver, -2 - arrived, arrived)
    arrived = tl.where((arrived <= -2) & (-2 - arrived <= position - recent), -1, arrived)

    tag = tl.where(enters, position, tl.where(recent > 0, -2 - position, -1))
    free = tl.min(tl.where(inside & (arrived == -1), slot, S_PAD), 0)
    free = tl.where(tag == -1, S_PAD, free)
    here = slot == free
    tl.store(arrived_ptr + row * S + slot, tl.where(here, tag, arrived), mask=inside)
    tl.store(score_cache_ptr + row * S + slot, score, mask=here)
    # The new key takes no slot where it is not live itself.
    width, width_v = tl.where(free < S_PAD, D, 0), tl.where(free < S_PAD, D_V, 0)
    target = row * S + free
    column, column_v = tl.arange(0, D_PAD), tl.arange(0, D_V_PAD)
    key = tl.load(k_ptr + row * D + column, mask=column < D, other=0.0)
    value = tl.load(v_ptr + row * D_V + column_v, mask=column_v < D_V, other=0.0)
    tl.store(k_cache_ptr + target * D + column, key, mask=column < width)
    tl.store(v_cache_ptr + target * D_V + column_v, value, mask=column_v < width_v)


@triton.jit
def _decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    arrived_ptr,
    bias_ptr,
    partial_ptr,
    peak_ptr,
    total_ptr,
    S,
    scale,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    D: tl.constexpr,
    D_V: tl.constexpr,
    D_PAD: tl.constexpr,
    D_V_PAD: tl.constexpr,
    KEYS: tl.constexpr,
    SHARE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    share, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head = tl.arange(0, GROUP_PAD)
    column, column_v = tl.arange(0, D_PAD), tl.arange(0, D_V_PAD)
    q_rows = q_ptr + (row * GROUP + head)[:, None] * D + column[None, :]
    q_gd = tl.load(q_rows, mask=(head < GROUP)[:, None] & (column < D)[None, :], other=0.0)
    acc = tl.zeros((GROUP_PAD, D_V_PAD), tl.float32)
    peak = tl.full((GROUP_PAD,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP_PAD,), tl.float32)
    for start in range(share * SHARE, tl.minimum(share * SHARE + SHARE, S), KEYS):
        slot = start + tl.arange(0, KEYS)
        inside = slot < S
        cell = row * S + slot
        k_sd = tl.load(
            k_ptr + cell[:, None] * D + column[None, :], mask=inside[:, None] & (column < D)[None, :], other=0.0
        )
        v_se = tl.load(
            v_ptr + cell[:, None] * D_V + column_v[None, :], mask=inside[:, None] & (column_v < D_V)[None, :], other=0.0
        )
        arrived = tl.load(arrived_ptr + cell, mask=inside, other=-1)
        logits = tl.dot(q_gd, tl.trans(k_sd), input_precision=PRECISION) * (scale * 1.4426950408889634)
        if HAS_BIAS:
            bias = tl.load(bias_ptr + cell, mask=inside, other=0.0).to(tl.float32)
            logits += (bias * 1.4426950408889634)[None, :]
        logits = tl.where((arrived != -1)[None, :], logits, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(logits, 1))
        reference = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(logits - reference[:, None])
        # A free slot's row was never written: its weight is 0, but 0 times what lies there may not be.
        v_se = tl.where((arrived != -1)[:, None], v_se, 0.0)
        shrink = tl.exp2(peak - reference)
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v_se.dtype), v_se, acc * shrink[:, None], input_precision=PRECISION)
        peak = new_peak
    cell = (row * GROUP + head) * tl.num_programs(0) + share
    tl.store(peak_ptr + cell, peak, mask=head < GROUP)
    tl.store(total_ptr + cell, total, mask=head < GROUP)
    rows = partial_ptr + cell[:, None] * D_V + column_v[None, :]
    tl.store(rows, acc, mask=(head < GROUP)[:, None] & (column_v < D_V)[None, :])


@triton.jit
def _combine_kernel(
    partial_ptr,
    peak_ptr,
    total_ptr,
    out_ptr,
    shares,
    D_V: tl.constexpr,
    D_V_PAD: tl.constexpr,
    SHARES_PAD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    share, column = tl.arange(0, SHARES_PAD), tl.arange(0, D_V_PAD)
    peak = tl.load(peak_ptr + row * shares + share, mask=share < shares, other=float("-inf"))
    total = tl.load(total_ptr + row * shares + share, mask=share < shares, other=0.0)
    reference = tl.max(peak, 0)
    grow = tl.exp2(peak - tl.where(reference == float("-inf"), 0.0, reference))
    rows = partial_ptr + (row * shares + share)[:, None] * D_V + column[None, :]
    partial = tl.load(rows, mask=(share < shares)[:, None] & (column < D_V)[None, :], other=0.0)
    total = tl.sum(total * grow, 0)
    out = tl.sum(partial * grow[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + row * D_V + column, out.to(out_ptr.dtype.element_ty), mask=column < D_V)
