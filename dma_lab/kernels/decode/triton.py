"""Decoding in Triton: admission is one program per key/value head; attention splits the cache among programs.

The split's partial results are summed in a fixed order by a second kernel (flash decoding), so the same input gives the
same bits.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.interval.compaction import LOG2_E
from dma_lab.kernels.interval.tiling import padded
from dma_lab.kernels.sizes import cdiv, next_power_of_2

_KEYS = 64
_SHARE = 256  # slots per program
_NEVER = tl.constexpr(2**31 - 1)  # later than any position
_LARGEST = tl.constexpr(torch.finfo(torch.float32).max)


class _Cache(NamedTuple):
    """Contiguous tensors (R, S, …) as ``admit_key`` has them."""

    k: Tensor
    v: Tensor
    score: Tensor
    arrived: Tensor


class _Arrival(NamedTuple):
    """A new key of every row."""

    k: Tensor
    v: Tensor
    score: Tensor


class _AdmitConfig(NamedTuple):
    """What admission is compiled for."""

    D: int
    E: int
    D_PAD: int
    E_PAD: int
    S_PAD: int


class _DecodeConfig(NamedTuple):
    """What attention is compiled for."""

    D: int
    E: int
    D_PAD: int
    E_PAD: int
    GROUP: int
    """Query heads of a key/value head."""
    GROUP_PAD: int
    KEYS: int
    SHARE: int
    """Slots per program."""
    PRECISION: str


class _Partial(NamedTuple):
    """What the programs of a head come to, float32, (B * H, shares, …): sums of values, maxima and sums of weights."""

    out: Tensor
    maximum: Tensor
    normaliser: Tensor


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
    cache = _Cache(k_cache, v_cache, score_cache, arrived_cache)
    arrival = _Arrival(k.contiguous(), v.contiguous(), score.contiguous())
    E = v_cache.shape[-1]
    config = _AdmitConfig(D, E, padded(D), padded(E), next_power_of_2(S))
    with torch.cuda.device_of(k):
        _admit_kernel[(B * K,)](cache, arrival, position, window, recent, S, config, num_warps=8)


@torch.library.custom_op("dma_lab::interval_attention_decode", mutates_args=())
def interval_attention_decode_triton(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, arrived_cache: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """Arguments and result as in ``interval_attention_decode``."""
    B, K, S, D = k_cache.shape
    H, E = q.shape[1], v_cache.shape[-1]
    group, shares, exact = H // K, cdiv(S, _SHARE), q.dtype == torch.float32
    q, k_cache, v_cache = q.contiguous(), k_cache.contiguous(), v_cache.contiguous()
    arrived_cache, bias = arrived_cache.contiguous(), None if bias is None else bias.contiguous()
    out = torch.empty(B, H, 1, E, dtype=v_cache.dtype, device=q.device)
    maximum = torch.empty(B * H, shares, dtype=torch.float32, device=q.device)
    partial = _Partial(maximum.new_empty(B * H, shares, E), maximum, torch.empty_like(maximum))
    config = _DecodeConfig(
        D=D,
        E=E,
        D_PAD=padded(D),
        E_PAD=padded(E),
        GROUP=group,
        GROUP_PAD=max(16, next_power_of_2(group)),
        KEYS=_KEYS if max(D, E) <= 128 else _KEYS // 2,
        SHARE=_SHARE,
        PRECISION="ieee" if exact else "tf32",
    )
    with torch.cuda.device_of(q):
        _decode_kernel[(shares, B * K)](
            q, k_cache, v_cache, arrived_cache, bias, partial, S, scale, config,
            num_warps=4, num_stages=2 if exact else 3,
        )  # fmt: skip
        _combine_kernel[(B * H,)](partial, out, shares, E, config.E_PAD, next_power_of_2(shares))
    return out


@interval_attention_decode_triton.register_fake
def _(q: Tensor, k_cache: Tensor, v_cache: Tensor, arrived_cache: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    return v_cache.new_empty(q.shape[0], q.shape[1], 1, v_cache.shape[-1])


@triton.jit(do_not_specialize=["position"])
def _admit_kernel(cache, arrival, position, window, recent, S, C: tl.constexpr):
    S_PAD: tl.constexpr = C.S_PAD
    row = tl.program_id(0).to(tl.int64)
    slot_s = tl.arange(0, S_PAD)
    inside_s = slot_s < S
    arrived_s = tl.load(cache.arrived + row * S + slot_s, mask=inside_s, other=-1)
    held_score_s = tl.load(cache.score + row * S + slot_s, mask=inside_s, other=0.0)
    score = tl.load(arrival.score + row).to(tl.float32)

    # Comparable: NaN is above all others, as infinity, which is then the largest number.
    held_worth_s = tl.where(held_score_s == held_score_s, tl.minimum(held_score_s, _LARGEST), float("inf"))
    worth = tl.where(score == score, tl.minimum(score, _LARGEST), float("inf"))
    best_s = arrived_s >= 0
    lowest = tl.min(tl.where(best_s, held_worth_s, float("inf")), 0)
    oldest = tl.min(tl.where(best_s & (held_worth_s == lowest), arrived_s, _NEVER), 0)
    # Where the window is not full nothing has to make way, as if the new key were better than all.
    full = tl.sum(best_s.to(tl.int32), 0) >= window
    enters = tl.where(full, worth, float("inf")) >= lowest
    leaver = tl.where(enters, tl.where(full, oldest, _NEVER), _NEVER)
    arrived_s = tl.where(arrived_s == leaver, -2 - arrived_s, arrived_s)
    arrived_s = tl.where((arrived_s <= -2) & (-2 - arrived_s <= position - recent), -1, arrived_s)

    tag = tl.where(enters, position, tl.where(recent > 0, -2 - position, -1))
    free = tl.min(tl.where(inside_s & (arrived_s == -1), slot_s, S_PAD), 0)
    free = tl.where(tag == -1, S_PAD, free)
    here_s = slot_s == free
    tl.store(cache.arrived + row * S + slot_s, tl.where(here_s, tag, arrived_s), mask=inside_s)
    tl.store(cache.score + row * S + slot_s, score, mask=here_s)
    # The new key takes no slot where it is not live itself.
    width_d, width_e = tl.where(free < S_PAD, C.D, 0), tl.where(free < S_PAD, C.E, 0)
    target = row * S + free
    column_d, column_e = tl.arange(0, C.D_PAD), tl.arange(0, C.E_PAD)
    k_d = tl.load(arrival.k + row * C.D + column_d, mask=column_d < C.D, other=0.0)
    v_e = tl.load(arrival.v + row * C.E + column_e, mask=column_e < C.E, other=0.0)
    tl.store(cache.k + target * C.D + column_d, k_d, mask=column_d < width_d)
    tl.store(cache.v + target * C.E + column_e, v_e, mask=column_e < width_e)


@triton.jit
def _decode_kernel(q_ptr, k_ptr, v_ptr, arrived_ptr, bias_ptr, partial, S, scale, C: tl.constexpr):
    E_PAD: tl.constexpr = C.E_PAD
    GROUP: tl.constexpr = C.GROUP
    GROUP_PAD: tl.constexpr = C.GROUP_PAD
    KEYS: tl.constexpr = C.KEYS
    SHARE: tl.constexpr = C.SHARE
    share, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head_a = tl.arange(0, GROUP_PAD)
    column_d, column_e = tl.arange(0, C.D_PAD), tl.arange(0, E_PAD)
    q_rows = q_ptr + (row * GROUP + head_a)[:, None] * C.D + column_d[None, :]
    q_ad = tl.load(q_rows, mask=(head_a < GROUP)[:, None] & (column_d < C.D)[None, :], other=0.0)
    acc_ae = tl.zeros((GROUP_PAD, E_PAD), tl.float32)
    max_a = tl.full((GROUP_PAD,), float("-inf"), tl.float32)
    sum_a = tl.zeros((GROUP_PAD,), tl.float32)
    for start in range(share * SHARE, tl.minimum(share * SHARE + SHARE, S), KEYS):
        slot_s = start + tl.arange(0, KEYS)
        inside_s, cell_s = slot_s < S, row * S + slot_s
        k_rows, v_rows = k_ptr + cell_s[:, None] * C.D, v_ptr + cell_s[:, None] * C.E
        k_sd = tl.load(k_rows + column_d[None, :], mask=inside_s[:, None] & (column_d < C.D)[None, :], other=0.0)
        v_se = tl.load(v_rows + column_e[None, :], mask=inside_s[:, None] & (column_e < C.E)[None, :], other=0.0)
        arrived_s = tl.load(arrived_ptr + cell_s, mask=inside_s, other=-1)
        logits_as = tl.dot(q_ad, tl.trans(k_sd), input_precision=C.PRECISION) * (scale * LOG2_E)
        if bias_ptr is not None:
            bias_s = tl.load(bias_ptr + cell_s, mask=inside_s, other=0.0).to(tl.float32)
            logits_as += (bias_s * LOG2_E)[None, :]
        logits_as = tl.where((arrived_s != -1)[None, :], logits_as, float("-inf"))
        new_max_a = tl.maximum(max_a, tl.max(logits_as, 1))
        known_a = tl.where(new_max_a == float("-inf"), 0.0, new_max_a)
        weights_as = tl.exp2(logits_as - known_a[:, None])
        # A free slot's row was never written: its weight is 0, but 0 times what lies there may not be.
        v_se = tl.where((arrived_s != -1)[:, None], v_se, 0.0)
        shrink_a = tl.exp2(max_a - known_a)
        sum_a = sum_a * shrink_a + tl.sum(weights_as, 1)
        acc_ae = tl.dot(weights_as.to(v_se.dtype), v_se, acc_ae * shrink_a[:, None], input_precision=C.PRECISION)
        max_a = new_max_a
    cell_a = (row * GROUP + head_a) * tl.num_programs(0) + share
    tl.store(partial.maximum + cell_a, max_a, mask=head_a < GROUP)
    tl.store(partial.normaliser + cell_a, sum_a, mask=head_a < GROUP)
    rows = partial.out + cell_a[:, None] * C.E + column_e[None, :]
    tl.store(rows, acc_ae, mask=(head_a < GROUP)[:, None] & (column_e < C.E)[None, :])


@triton.jit
def _combine_kernel(partial, out_ptr, shares, E: tl.constexpr, E_PAD: tl.constexpr, SHARES_PAD: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    share_s, column_e = tl.arange(0, SHARES_PAD), tl.arange(0, E_PAD)
    max_s = tl.load(partial.maximum + row * shares + share_s, mask=share_s < shares, other=float("-inf"))
    sum_s = tl.load(partial.normaliser + row * shares + share_s, mask=share_s < shares, other=0.0)
    maximum = tl.max(max_s, 0)
    grow_s = tl.exp2(max_s - tl.where(maximum == float("-inf"), 0.0, maximum))
    rows = partial.out + (row * shares + share_s)[:, None] * E + column_e[None, :]
    partial_se = tl.load(rows, mask=(share_s < shares)[:, None] & (column_e < E)[None, :], other=0.0)
    normaliser = tl.sum(sum_s * grow_s, 0)
    out_e = tl.sum(partial_se * grow_s[:, None], 0) / tl.where(normaliser > 0, normaliser, 1.0)
    tl.store(out_ptr + row * E + column_e, out_e.to(out_ptr.dtype.element_ty), mask=column_e < E)
