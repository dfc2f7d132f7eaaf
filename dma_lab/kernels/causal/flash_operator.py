"""The flash-attn packages as one PyTorch operator: autograd, and shapes for torch.compile."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dma_lab.kernels.causal import flash2, flash4
from dma_lab.kernels.documents import Documents, locate_documents

_PACKAGES: dict[int, ModuleType] = {2: flash2, 4: flash4}


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    document_ids: Tensor | Documents | None,
    scale: float | None,
    *,
    version: int,
) -> Tensor:
    """What ``causal_attention`` describes, by the package's ``version``, 2 or 4, which must support it."""
    offsets, longest = (None, None) if document_ids is None else locate_documents(document_ids)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q_bnhd, k_bnkd, v_bnke = (tensor.transpose(1, 2).contiguous() for tensor in (q, k, v))
    out_bnhe: Tensor = _attend(q_bnhd, k_bnkd, v_bnke, offsets, longest, window, scale, version)[0]
    return out_bnhe.transpose(1, 2)


@torch.library.custom_op("dma_lab::flash_attention", mutates_args=(), device_types="cuda")
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor | None,
    longest: Tensor | None,
    window: int | None,
    scale: float,
    version: int,
) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, E) and the B * H * N queries' log-sum-exp, float32, in the package's order."""
    with torch.cuda.device_of(q):
        out, lse = _PACKAGES[version].forward(q, k, v, offsets, _length(longest), window, scale)
    return out, lse.flatten()


@_attend.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor | None,
    longest: Tensor | None,
    window: int | None,
    scale: float,
    version: int,
) -> tuple[Tensor, Tensor]:
    B, N, H, _ = q.shape
    return q.new_empty(B, N, H, v.shape[-1]), q.new_empty(B * H * N, dtype=torch.float32)


@torch.library.custom_op("dma_lab::flash_attention_backward", mutates_args=(), device_types="cuda")
def _backward_pass(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor | None,
    longest: Tensor | None,
    window: int | None,
    scale: float,
    version: int,
) -> tuple[Tensor, Tensor, Tensor]:
    B, N, H, _ = q.shape
    lse = lse.view(B, H, N) if offsets is None and version == 4 else lse.view(H, B * N)
    with torch.cuda.device_of(q):
        gradients: tuple[Tensor, Tensor, Tensor] = _PACKAGES[version].backward(
            d_out.contiguous(), q, k, v, out, lse, offsets, _length(longest), window, scale
        )
    return gradients


@_backward_pass.register_fake
def _(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor | None,
    longest: Tensor | None,
    window: int | None,
    scale: float,
    version: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, offsets, longest, ctx.window, ctx.scale, ctx.version = inputs
    ctx.save_for_backward(q, k, v, *output, offsets, longest)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_out: Tensor, _d_lse: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _backward_pass(d_out, *ctx.saved_tensors, ctx.window, ctx.scale, ctx.version)
    return *gradients, None, None, None, None, None


_attend.register_autograd(_backward, setup_context=_save_for_backward)


def _length(longest: Tensor | None) -> int:
    return 0 if longest is None else int(longest)  # in the host's memory: no wait
