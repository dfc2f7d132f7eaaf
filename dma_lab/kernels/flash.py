"""The flash-attn package's kernels (Dao 2023, arXiv 2307.08691), where it is installed and suits: causal attention,
windowed or not, over packed documents. They exist for CUDA alone; ``interval_attention`` computes the same anywhere.
"""

import importlib.util

import torch
from torch import Tensor

from dma_lab.kernels.selection.lifetimes import document_bounds

_INSTALLED = importlib.util.find_spec("flash_attn") is not None
_HEAD_DIMS = (64, 128)  # which every build of the package has


def flash_attention_supports(q: Tensor, v: Tensor) -> bool:
    """Whether flash-attn is installed and takes q (B, H, N, D) and v (B, K, N, D_v)."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    return q.device.type == "cuda" and half and v.shape[-1] == q.shape[-1] in _HEAD_DIMS and _INSTALLED


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None, document_ids: Tensor | None = None
) -> Tensor:
    """Softmax attention of every query over the keys of its document at or before it, the last ``window`` of them.

    Args:
        q: (B, H, N, D) bfloat16 or float16 on CUDA, as ``flash_attention_supports`` says.
        k, v: (B, K, N, D); K divides H.
        window: keys a query sees, its own included; all by default.
        document_ids: (B, N), non-decreasing.

    Returns:
        (B, H, N, D). The backward pass adds up dq in no fixed order, unless PyTorch's deterministic algorithms are on.
    """
    q_bnhd, k_bnkd, v_bnkd = (tensor.transpose(1, 2).contiguous() for tensor in (q, k, v))
    return _flash_attention(q_bnhd, k_bnkd, v_bnkd, window or 0, document_ids)[0].transpose(1, 2)


def _sequences(q: Tensor, document_ids: Tensor | None) -> tuple[Tensor, int]:
    """Where each document begins in the (B * N) tokens, int32 with their end last, and a bound on their lengths."""
    B, N = q.shape[:2]
    if document_ids is None:
        return torch.arange(0, (B + 1) * N, N, dtype=torch.int32, device=q.device), N
    start_bn, _ = document_bounds(document_ids, B, N, q.device)
    opens = (start_bn == torch.arange(N, device=q.device)).flatten().nonzero().flatten()  # waits for the device
    offsets = torch.cat((opens, opens.new_tensor([B * N]))).to(torch.int32)
    return offsets, int(offsets.diff().max())


@torch.library.custom_op("dma_lab::flash_attention", mutates_args=(), device_types="cuda")
def _flash_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, document_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, D) and each query's log-sum-exp (H, B * N); ``window`` 0 is none."""
    from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

    offsets, longest = _sequences(q, document_ids)
    flat = (tensor.flatten(0, 1) for tensor in (q, k, v))
    out, lse, *_ = _flash_attn_varlen_forward(
        *flat, offsets, offsets, longest, longest, 0.0, q.shape[-1] ** -0.5, True, *_sides(window)
    )
    return out.view_as(q), lse


@_flash_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, window: int, document_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    B, N, H, _ = q.shape
    return torch.empty_like(q), q.new_empty(H, B * N, dtype=torch.float32)


@torch.library.custom_op("dma_lab::flash_attention_backward", mutates_args=(), device_types="cuda")
def _flash_attention_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int, document_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

    offsets, longest = _sequences(q, document_ids)
    flat = (tensor.contiguous().flatten(0, 1) for tensor in (d_out, q, k, v, out))
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _flash_attn_varlen_backward(
        *flat,
        lse,
        *(gradient.flatten(0, 1) for gradient in gradients),
        *(offsets, offsets, longest, longest, 0.0, q.shape[-1] ** -0.5, True, *_sides(window)),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return gradients


@_flash_attention_backward.register_fake
def _(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int, document_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _sides(window: int) -> tuple[int, int]:
    """Keys seen to the left and right of the query's own, as the package counts them."""
    return (window - 1, 0) if window else (-1, -1)


def _save_for_backward(ctx, inputs, output) -> None:
    q, k, v, ctx.window, document_ids = inputs
    ctx.save_for_backward(q, k, v, *output, document_ids)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, d_out: Tensor, _d_lse: Tensor):
    q, k, v, out, lse, document_ids = ctx.saved_tensors
    return *_flash_attention_backward(d_out, q, k, v, out, lse, ctx.window, document_ids), None, None


_flash_attention.register_autograd(_backward, setup_context=_save_for_backward)
