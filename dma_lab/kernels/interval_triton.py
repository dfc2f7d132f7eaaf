"""Interval attention's Triton kernels as PyTorch operators: autograd, and shapes for torch.compile."""

import torch
from torch import Tensor

from dma_lab.kernels import tiling
from dma_lab.kernels.hopper_ring import hopper_suits
from dma_lab.kernels.interval_hopper_dkv import hopper_dkv
from dma_lab.kernels.interval_hopper_dq import hopper_dq
from dma_lab.kernels.interval_hopper_forward import hopper_forward
from dma_lab.kernels.interval_triton_backward import interval_backward_dkv, interval_backward_dq
from dma_lab.kernels.interval_triton_forward import interval_forward
from dma_lab.kernels.key_lists import backward_key_order, build_key_lists, most_alive


@torch.library.custom_op("dma_lab::interval_attention", mutates_args=())
def interval_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, expiry: Tensor, bias: Tensor | None, scale: float, max_live: int | None
) -> tuple[Tensor, Tensor]:
    """Output and log2 of each query's softmax sum; arguments as in ``interval_attention``."""
    q, k, v = _rows_contiguous(q), _rows_contiguous(k), _rows_contiguous(v)
    expiry, bias = expiry.contiguous(), None if bias is None else bias.contiguous()
    tile = tiling.forward_tile(max(q.shape[-1], v.shape[-1]), q.dtype)
    block = _list_block(q, k)
    with torch.cuda.device_of(q):
        lists = build_key_lists(expiry, block, most_alive(expiry) if max_live is None else max_live, bias)
        if hopper_suits(q, k, v):
            return hopper_forward(q, k, v, lists, scale)
        return interval_forward(q, k, v, lists, block, scale, tile)


@interval_attention_triton.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, expiry: Tensor, bias: Tensor | None, scale: float, max_live: int | None
) -> tuple[Tensor, Tensor]:
    B, H, N, _ = q.shape
    return _heads_beside(q, v.shape[-1]), q.new_empty(B, H, N, dtype=torch.float32)


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
    scale: float,
    max_live: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv and dbias (float32). The lists are built anew: cheaper than keeping them for every layer."""
    d_out, q, k, v = _rows_contiguous(d_out), _rows_contiguous(q), _rows_contiguous(k), _rows_contiguous(v)
    expiry, bias = expiry.contiguous(), None if bias is None else bias.contiguous()
    head_dim, block = max(q.shape[-1], v.shape[-1]), _list_block(q, k)
    with torch.cuda.device_of(q):
        lists = build_key_lists(expiry, block, most_alive(expiry) if max_live is None else max_live, bias)
        order_rn = backward_key_order(expiry)
        if hopper_suits(q, k, v, d_out):
            dq, delta = hopper_dq(d_out, q, k, v, out, lse, lists, scale)
            return dq, *hopper_dkv(d_out, q, k, v, expiry, bias, lse, delta, order_rn, scale)
        dq, delta = interval_backward_dq(
            d_out, q, k, v, out, lse, lists, block, scale, tiling.dq_tile(head_dim, q.dtype)
        )
        dkv_tile = tiling.dkv_tile(head_dim, q.dtype)
        dk, dv, d_bias = interval_backward_dkv(d_out, q, k, v, expiry, bias, lse, delta, order_rn, scale, dkv_tile)
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
    scale: float,
    max_live: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_bias = expiry.new_empty(expiry.shape, dtype=torch.float32)
    return _heads_beside(q, q.shape[-1]), _heads_beside(k, k.shape[-1]), _heads_beside(v, v.shape[-1]), d_bias


def _save_for_backward(ctx, inputs, output) -> None:
    q, k, v, expiry, bias, ctx.scale, ctx.max_live = inputs
    ctx.save_for_backward(q, k, v, expiry, bias, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, d_out: Tensor, _d_lse: Tensor):
    saved = ctx.saved_tensors  # asked once: under checkpointing every asking computes the layer again
    bias = saved[4]
    gradients = interval_attention_triton_backward(d_out, *saved, ctx.scale, ctx.max_live)
    d_bias = None if bias is None else gradients[3].to(bias.dtype)
    return *gradients[:3], None, d_bias, None, None


interval_attention_triton.register_autograd(_backward, setup_context=_save_for_backward)


def _list_block(q: Tensor, k: Tensor) -> int:
    """Queries that share a key list."""
    return tiling.LIST_ROWS // tiling.heads_together(q.shape[1] // k.shape[1])


def _rows_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _heads_beside(like: Tensor, width: int) -> Tensor:
    """Empty (B, heads, N, width), laid out with a token's heads together, as projections read and write them."""
    B, heads, N, _ = like.shape
    return like.new_empty(B, N, heads, width).transpose(1, 2)
