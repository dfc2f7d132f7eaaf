"""Block-sparse attention's kernels as PyTorch operators: autograd, and shapes for torch.compile."""

from typing import Any

import torch
from torch import Tensor

from dma_lab.kernels.blocks.lists import QueryLists, build_query_lists
from dma_lab.kernels.blocks.triton.backward import selected_backward
from dma_lab.kernels.blocks.triton.forward import selected_forward
from dma_lab.kernels.interval.arguments import new_heads

_Outputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Output, log2 of each query's softmax sum, and ``QueryLists``, for the backward pass."""


@torch.library.custom_op("dma_lab::selected_attention", mutates_args=())
def selected_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, end_bn: Tensor, block: int, scale: float
) -> _Outputs:
    """Arguments as in ``selected_attention``; ``chosen`` and ``end_bn`` contiguous."""
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    with torch.cuda.device_of(q):
        lists = build_query_lists(chosen, block)
        out, lse = selected_forward(q, k, v, chosen, lists, block, scale)
    return out, lse, *lists


@selected_attention_triton.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, end_bn: Tensor, block: int, scale: float) -> _Outputs:
    B, K, N, S = chosen.shape
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    return new_heads(q, q.shape[1], q.shape[3]), lse, chosen.new_empty(B * K, N * S), chosen.new_empty(B * K)


@torch.library.custom_op("dma_lab::selected_attention_backward", mutates_args=())
def selected_attention_triton_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chosen: Tensor,
    end_bn: Tensor,
    out: Tensor,
    lse: Tensor,
    place_rl: Tensor,
    length_r: Tensor,
    block: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv."""
    d_out, q, k, v = rows_contiguous(d_out), rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    with torch.cuda.device_of(q):
        lists = QueryLists(place_rl, length_r)
        return selected_backward(d_out, q, k, v, chosen, end_bn, out, lse, lists, block, scale)


@selected_attention_triton_backward.register_fake
def _(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chosen: Tensor,
    end_bn: Tensor,
    out: Tensor,
    lse: Tensor,
    place_rl: Tensor,
    length_r: Tensor,
    block: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (new_heads(like, like.shape[1], like.shape[-1]) for like in (q, k, v))
    return dq, dk, dv


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, chosen, end_bn, ctx.block, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, chosen, end_bn, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_out: Tensor, *_d_others: Tensor) -> tuple[Tensor | None, ...]:
    gradients = selected_attention_triton_backward(d_out, *ctx.saved_tensors, ctx.block, ctx.scale)
    return *gradients, None, None, None, None


selected_attention_triton.register_autograd(_backward, setup_context=_save_for_backward)


def rows_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
