"""The flash-attn package, version 2 (Dao 2023, arXiv 2307.08691)."""

import torch
from torch import Tensor

from dma_lab.kernels.causal.problem import Problem, not_importable

_HEAD_DIMS = (64, 128)  # which every build of the package has


def supports(problem: Problem) -> str | None:
    if problem.device != "cuda" or problem.capability < (8, 0):
        return "it needs a CUDA GPU of compute capability 8.0 or more"
    if problem.dtype != torch.bfloat16:  # builds without float16 exist, and compute nonsense when they are given it
        return f"it is used for bfloat16 alone, not {problem.dtype}"
    if problem.D != problem.E or problem.D not in _HEAD_DIMS:
        return f"it takes head dims 64 and 128, not {problem.D} and {problem.E}"
    return missing()


def missing() -> str | None:
    return not_importable("flash_attn.flash_attn_interface")


def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None, longest: int, window: int | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, D) for q of that shape and k, v (B, N, K, D), and each query's log-sum-exp (H, B * N)."""
    from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

    flat, lengths = [tensor.flatten(0, 1) for tensor in (q, k, v)], _lengths(q, offsets, longest)
    out, lse, *_ = _flash_attn_varlen_forward(*flat, *lengths, 0.0, scale, True, *_sides(window))
    return out.view_as(q), lse


def backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor | None,
    longest: int,
    window: int | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv, shaped as q, k and v."""
    from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _flash_attn_varlen_backward(
        *(tensor.flatten(0, 1) for tensor in (d_out, q, k, v, out)),
        lse,
        *(gradient.flatten(0, 1) for gradient in gradients),
        *_lengths(q, offsets, longest),
        *(0.0, scale, True, *_sides(window)),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return gradients


def _lengths(q: Tensor, offsets: Tensor | None, longest: int) -> tuple[Tensor, Tensor, int, int]:
    B, N = q.shape[:2]
    if offsets is None:  # every sequence is one document
        offsets, longest = torch.arange(0, (B + 1) * N, N, dtype=torch.int32, device=q.device), N
    return offsets, offsets, longest, longest


def _sides(window: int | None) -> tuple[int, int]:
    """Keys seen to the left and right of the query's own, as the package counts them."""
    return (-1, -1) if window is None else (window - 1, 0)
