"""PyTorch's scaled_dot_product_attention: cuDNN's kernel by itself, and the others. No windows, no packed documents."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dma_lab.kernels.causal.problem import Problem
from dma_lab.kernels.documents import Documents

_CUDNN = 91501
"""Before 9.15.1 it erred where the length is no multiple of 128 (PyTorch's issue 169849)."""


def cudnn_supports(problem: Problem) -> str | None:
    """PyTorch's own conditions (``can_use_cudnn_attention``), where cuDNN is the faster one."""
    if problem.device != "cuda" or problem.capability[0] not in (9, 10):
        return "it leads on Hopper and Blackwell GPUs alone"
    if (reason := _masked(problem)) is not None:
        return reason
    if not problem.half:
        return f"it takes bfloat16 and float16, not {problem.dtype}"
    if problem.deterministic:
        return "it is not deterministic"
    if problem.D % 8 or problem.E % 8 or (max(problem.D, problem.E) > 128 and (problem.D, problem.E) != (192, 128)):
        return f"it takes head dims that are multiples of 8 up to 128, not {problem.D} and {problem.E}"
    if problem.single:
        return "it takes no single token"
    if _cudnn_version() < _CUDNN:
        return f"cuDNN {_cudnn_version()} is older than {_CUDNN}"
    return None


def _cudnn_version() -> int:
    return torch.backends.cudnn.version() or 0


def cudnn_attend(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, document_ids: Tensor | Documents | None, scale: float | None
) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=k.shape[1] < q.shape[1])


def supports(problem: Problem) -> str | None:
    """Where PyTorch has a fused kernel. Where it has none it builds N x N scores without a word.

    On CUDA its flash kernels take grouped heads in half precision, its memory-efficient one widths that differ and
    float32, but no groups; both want multiples of 8. The CPU's takes all but values wider than keys.
    """
    if (reason := _masked(problem)) is not None:
        return reason
    if problem.device != "cuda":
        # A window takes one way whatever the length: what precedes a token then has the same bits however much follows.
        if problem.window is not None:
            return "a window is given"
        return f"values of width {problem.E} are wider than keys of {problem.D}" if problem.E > problem.D else None
    if problem.D % 8 or problem.E % 8:
        return f"head dims {problem.D} and {problem.E} are no multiples of 8"
    if problem.dtype == torch.float64:
        return "it takes no float64"
    if problem.K < problem.H and not (problem.half and problem.D == problem.E <= 256):
        return f"grouped heads of {problem.dtype}, head dims {problem.D} and {problem.E}, have no fused kernel"
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, document_ids: Tensor | Documents | None, scale: float | None
) -> Tensor:
    D, E, grouped = q.shape[-1], v.shape[-1], k.shape[1] < q.shape[1]
    if q.is_cuda:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    # The CPU's kernel takes equal widths alone: zeros fill the values up, and their columns of the result are dropped.
    out = F.scaled_dot_product_attention(q, k, F.pad(v, (0, D - E)), is_causal=True, scale=scale, enable_gqa=grouped)
    return out[..., :E]


def _masked(problem: Problem) -> str | None:
    if problem.packed:
        return "documents are packed"
    return None if problem.whole else f"it has no window ({problem.window})"
