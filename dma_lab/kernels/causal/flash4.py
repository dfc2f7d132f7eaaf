"""The flash-attn-4 package (``flash_attn.cute``, kernels in CuTe DSL for Hopper and Blackwell), 4.0.0b36.

Its public functions cannot be compiled by torch.compile, so its forward and backward passes are called by themselves.
"""

import importlib.metadata

import torch
from torch import Tensor

from dma_lab.kernels.causal.problem import Problem, not_importable


def supports(problem: Problem) -> str | None:
    """The package's own conditions, for a forward and a backward pass."""
    D, E, major = problem.D, problem.E, problem.capability[0]
    if problem.device != "cuda" or major not in (9, 10):
        return "it needs a Hopper or Blackwell GPU"
    if not problem.half:
        return f"it takes bfloat16 and float16, not {problem.dtype}"
    largest = 256 if major == 9 else 128
    fits = 8 <= min(D, E) and max(D, E) <= largest and D % 8 == E % 8 == 0
    if not fits and not (major == 10 and (D, E) in ((192, 128), (256, 256))):
        return f"it takes head dims that are multiples of 8 up to {largest}, not {D} and {E}"
    if D != E and problem.K < problem.H:
        return f"its backward pass takes no grouped heads of different widths, {D} and {E}"
    return missing()


def missing() -> str | None:
    try:
        folder = str(importlib.metadata.distribution("flash-attn-4").locate_file("flash_attn"))
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    if (reason := not_importable("flash_attn")) is not None:
        return reason
    import flash_attn

    # Where the two lie in different folders, version 2 hides it: it has the same name and an old ``cute`` of its own.
    flash_attn.__path__ = [folder, *(other for other in flash_attn.__path__ if other != folder)]
    return not_importable("flash_attn.cute.interface")


def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None, longest: int, window: int | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, E) for q (B, N, H, D), k (B, N, K, D), v (B, N, K, E), and each query's log-sum-exp.

    That is (B, H, N); (H, B * N) where there are ``offsets``.
    """
    from flash_attn.cute.interface import _flash_attn_fwd

    flat, asked = _packed((q, k, v), offsets), _asked(offsets, longest, window, scale)
    out, lse, *_ = _flash_attn_fwd(*flat, **asked, return_lse=True)
    return out.view(*q.shape[:3], v.shape[-1]), lse


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
    from flash_attn.cute.interface import _flash_attn_bwd

    flat, asked = _packed((q, k, v, out, d_out), offsets), _asked(offsets, longest, window, scale)
    deterministic = torch.are_deterministic_algorithms_enabled()
    dq, dk, dv, *_ = _flash_attn_bwd(*flat, lse, **asked, deterministic=deterministic)
    return dq.view_as(q), dk.view_as(k), dv.view_as(v)


def _packed(tensors: tuple[Tensor, ...], offsets: Tensor | None) -> list[Tensor]:
    return [tensor if offsets is None else tensor.flatten(0, 1) for tensor in tensors]


def _asked(offsets: Tensor | None, longest: int, window: int | None, scale: float) -> dict[str, object]:
    asked: dict[str, object] = {"softmax_scale": scale, "causal": True}
    if window is not None:
        asked["window_size_left"] = window - 1  # beside the query's own
    if offsets is not None:
        asked |= {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets, "max_seqlen_q": longest, "max_seqlen_k": longest}
    return asked
