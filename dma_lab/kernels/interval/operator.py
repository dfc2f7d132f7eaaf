"""Interval attention's kernels as PyTorch operators: autograd, and shapes for torch.compile."""

from typing import Any

import torch
from torch import Tensor

from dma_lab.kernels.choice import note_kernel
from dma_lab.kernels.interval import tiling
from dma_lab.kernels.interval.arguments import new_heads
from dma_lab.kernels.interval.hopper.dkv import hopper_dkv
from dma_lab.kernels.interval.hopper.dq import hopper_dq
from dma_lab.kernels.interval.hopper.forward import hopper_forward
from dma_lab.kernels.interval.hopper.ring import hopper_supports
from dma_lab.kernels.interval.key_lists import FlatLists, KeyLists, build_key_lists, empty_key_lists, most_alive
from dma_lab.kernels.interval.key_order import backward_key_order
from dma_lab.kernels.interval.triton.delta import delta_of_short_lists
from dma_lab.kernels.interval.triton.dkv import interval_backward_dkv
from dma_lab.kernels.interval.triton.dq import interval_backward_dq
from dma_lab.kernels.interval.triton.forward import interval_forward
from dma_lab.messages import print_once

_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Output, log2 of each query's softmax sum, and ``KeyLists.flatten`` of the lists, for the backward pass."""


def list_block(q: Tensor, k: Tensor) -> int:
    """Queries that share a key list."""
    return tiling.LIST_ROWS // tiling.heads_together(q.shape[1] // k.shape[1])


def attend_lists(q: Tensor, k: Tensor, v: Tensor, lists: KeyLists, scale: float) -> tuple[Tensor, Tensor]:
    """Forward pass alone, ``lists`` being for blocks of ``list_block`` queries: output and log2 of softmax sums."""
    if _on_hopper(q, k, v):
        note_kernel("interval attention (Hopper)")
        return hopper_forward(q, k, v, lists, scale)
    note_kernel("interval attention (Triton)")
    tile = tiling.forward_tile(max(q.shape[-1], v.shape[-1]), q.dtype)
    return interval_forward(q, k, v, lists, list_block(q, k), scale, tile)


def _on_hopper(q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> bool:
    """Whether the kernels for Hopper run. On CUDA a line on stderr says once why they do not."""
    capability = torch.cuda.get_device_capability(q.device) if q.is_cuda else (0, 0)
    reason = hopper_supports(capability, q, k, v, *others)
    if q.is_cuda and reason is not None:
        print_once(f"interval attention runs on the kernels for any GPU (not on those for Hopper: {reason}).")
    return reason is None


@torch.library.custom_op("dma_lab::interval_attention", mutates_args=())
def interval_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, expiry: Tensor, bias: Tensor | None, scale: float, max_live: int | None
) -> _Outputs:
    """Arguments as in ``interval_attention``. Without ``max_live``, when the lists' size is not known beforehand, no
    list is kept: eight empty tensors stand for them.
    """
    q, k, v = _rows_contiguous(q), _rows_contiguous(k), _rows_contiguous(v)
    with torch.cuda.device_of(q):
        lists = _build_lists(expiry, list_block(q, k), bias, max_live)
        out, lse = attend_lists(q, k, v, lists, scale)
    return out, lse, *_kept(lists, max_live)


@interval_attention_triton.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, expiry: Tensor, bias: Tensor | None, scale: float, max_live: int | None
) -> _Outputs:
    lists = empty_key_lists(expiry, list_block(q, k), max_live or 1, bias is not None)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    return new_heads(q, q.shape[1], v.shape[-1]), lse, *_kept(lists, max_live)


@torch.library.custom_op("dma_lab::interval_attention_backward", mutates_args=())
def interval_attention_triton_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    expiry: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    lists: list[Tensor],
    scale: float,
    max_live: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv and dbias (float32)."""
    d_out, q, k, v = _rows_contiguous(d_out), _rows_contiguous(q), _rows_contiguous(k), _rows_contiguous(v)
    expiry, bias = expiry.contiguous(), None if bias is None else bias.contiguous()
    head_dim, block = max(q.shape[-1], v.shape[-1]), list_block(q, k)
    with torch.cuda.device_of(q):
        if max_live is None:
            key_lists = _build_lists(expiry, block, bias, None)
        else:
            key_lists = KeyLists.of(lists, has_bias=bias is not None)
        order_rn = backward_key_order(expiry, key_lists)
        if q.dtype == torch.float32:
            delta = torch.empty_like(lse)
        else:
            delta = delta_of_short_lists(d_out, q, k, v, lse, key_lists, block, scale)
        if _on_hopper(q, k, v, d_out):
            dq = hopper_dq(d_out, q, k, v, out, lse, delta, key_lists, scale)
            return dq, *hopper_dkv(d_out, q, k, v, expiry, bias, lse, delta, order_rn, scale)
        tile = tiling.dq_tile(head_dim, q.dtype)
        dq = interval_backward_dq(d_out, q, k, v, out, lse, delta, key_lists, block, scale, tile)
        tile = tiling.dkv_tile(head_dim, q.dtype)
        dk, dv, d_bias = interval_backward_dkv(d_out, q, k, v, expiry, bias, lse, delta, order_rn, scale, tile)
    return dq, dk, dv, d_bias


@interval_attention_triton_backward.register_fake
def _(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    expiry: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    lists: list[Tensor],
    scale: float,
    max_live: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_bias = expiry.new_empty(expiry.shape, dtype=torch.float32)
    dq, dk, dv = (new_heads(like, like.shape[1], like.shape[-1]) for like in (q, k, v))
    return dq, dk, dv, d_bias


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    q, k, v, expiry, bias, ctx.scale, ctx.max_live = inputs
    ctx.save_for_backward(q, k, v, expiry, bias, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zeros for outputs that have no gradient: the lists are large


def _backward(ctx: Any, d_out: Tensor, *_d_others: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # asked once: under checkpointing every asking computes the layer again
    bias = saved[4]
    gradients = interval_attention_triton_backward(d_out, *saved[:7], list(saved[7:]), ctx.scale, ctx.max_live)
    d_bias = None if bias is None else gradients[3].to(bias.dtype)
    return *gradients[:3], None, d_bias, None, None


interval_attention_triton.register_autograd(_backward, setup_context=_save_for_backward)


def _build_lists(expiry: Tensor, block: int, bias: Tensor | None, max_live: int | None) -> KeyLists:
    expiry, bias = expiry.contiguous(), None if bias is None else bias.contiguous()
    return build_key_lists(expiry, block, most_alive(expiry) if max_live is None else max_live, bias)


def _kept(lists: KeyLists, max_live: int | None) -> FlatLists:
    if max_live is not None:
        return lists.flatten()
    nothing = lists.ever_rx.new_empty(0)
    a, b, c, d, e, f, g = (nothing.clone() for _ in range(7))  # an operator's outputs may not be one tensor
    return nothing, a, b, c, d, e, f, g


def _rows_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
