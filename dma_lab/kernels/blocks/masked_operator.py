"""Block-sparse attention under a mask as PyTorch operators: autograd, and shapes for torch.compile."""

from typing import Any

import torch
from torch import Tensor

from dma_lab.kernels.blocks.bits import choice_bits
from dma_lab.kernels.blocks.operator import rows_contiguous
from dma_lab.kernels.blocks.triton.masked_backward import masked_backward
from dma_lab.kernels.blocks.triton.masked_forward import masked_forward
from dma_lab.kernels.interval.arguments import new_heads

_Outputs = tuple[Tensor, Tensor, Tensor]
"""Output, log2 of each query's softmax sum, and the choice's bits, for the backward pass."""


@torch.library.custom_op("dma_lab::masked_attention", mutates_args=())
def masked_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, start_bn: Tensor, end_bn: Tensor, block: int, scale: float
) -> _Outputs:
    """Arguments as in ``selected_attention``; ``chosen``, ``start_bn`` and ``end_bn`` contiguous."""
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    with torch.cuda.device_of(q):
        bits_bkn = choice_bits(chosen, start_bn, block)
        return *masked_forward(q, k, v, bits_bkn, start_bn, block, scale), bits_bkn


@masked_attention_triton.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, start_bn: Tensor, end_bn: Tensor, block: int, scale: float
) -> _Outputs:
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    return new_heads(q, q.shape[1], q.shape[3]), lse, chosen.new_empty(chosen.shape[:3])


@torch.library.custom_op("dma_lab::masked_attention_backward", mutates_args=())
def masked_attention_triton_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start_bn: Tensor,
    end_bn: Tensor,
    out: Tensor,
    lse: Tensor,
    bits_bkn: Tensor,
    block: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv."""
    d_out, q, k, v = rows_contiguous(d_out), rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    with torch.cuda.device_of(q):
        return masked_backward(d_out, q, k, v, bits_bkn, start_bn, end_bn, out, lse, block, scale)


@masked_attention_triton_backward.register_fake
def _(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start_bn: Tensor,
    end_bn: Tensor,
    out: Tensor,
    lse: Tensor,
    bits_bkn: Tensor,
    block: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (new_heads(like, like.shape[1], like.shape[-1]) for like in (q, k, v))
    return dq, dk, dv


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    q, k, v, _, start_bn, end_bn, ctx.block, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, start_bn, end_bn, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_out: Tensor, *_d_others: Tensor) -> tuple[Tensor | None, ...]:
    gradients = masked_attention_triton_backward(d_out, *ctx.saved_tensors, ctx.block, ctx.scale)
    return *gradients, None, None, None, None, None


masked_attention_triton.register_autograd(_backward, setup_context=_save_for_backward)
