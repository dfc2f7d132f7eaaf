"""Interval attention's Triton kernels as PyTorch operators: autograd, and shapes for torch.compile."""

import torch
from torch import Tensor

from dma_lab.kernels import tiling
from dma_lab.kernels.hopper_ring import hopper_suits
from dma_lab.kernels.interval_hopper_dkv import hopper_dkv
from dma_lab.kernels.interval_hopper_dq import hopper_dq
from dma_lab.kernels.interval_hopper_forward import hopper_forward
from dma_lab.kernels.interval_triton_delta import delta_of_short_lists
from dma_lab.kernels.interval_triton_dkv import interval_backward_dkv
from dma_lab.kernels.interval_triton_dq import interval_backward_dq
from dma_lab.kernels.interval_triton_forward import interval_forward
from dma_lab.kernels.key_lists import KeyLists, build_key_lists, empty_key_lists, most_alive
from dma_lab.kernels.key_order import backward_key_order


def list_block(q: Tensor, k: Tensor) -> int:
    """Queries that share a key list."""
    return tiling.LIST_ROWS // tiling.heads_together(q.shape[1] // k.shape[1])


def attend_lists(q: Tensor, k: Tensor, v: Tensor, lists: KeyLists, scale: float) -> tuple[Tensor, Tensor]:
    """Forward pass alone, ``lists`` being for blocks of ``list_block`` queries: output and log2 of softmax sums."""
    if hopper_suits(q, k, v):
        return hopper_forward(q, k, v, lists, scale)
    tile = tiling.forward_tile(max(q.shape[-1], v.shape[-1]), q.dtype)
    return interval_forward(q, k, v, lists, list_block(q, k), scale, tile)


@torch.library.custom_op("dma_lab::interval_attention", mutates_args=())
def interval_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, expiry: Tensor, bias: Tensor | None, scale: float, max_live: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output, log2 of each query's softmax sum, and the key lists, for the backward pass; arguments as in
    ``interval_attention``. What the lists lack without a bias is empty, and all of them are without ``max_live``:
    their size, then, is not known beforehand.
    """
    q, k, v = _rows_contiguous(q), _rows_contiguous(k), _rows_contiguous(v)
    with torch.cuda.device_of(q):
        lists = _build_lists(expiry, list_block(q, k), bias, max_live)
        out, lse = attend_lists(q, k, v, lists, scale)
    return out, lse, *_kept(lists, max_live)


@interval_attention_triton.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, expiry: Tensor, bias: Tensor | None, scale: float, max_live: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, H, N, _ = q.shape
    lists = empty_key_lists(expiry, list_block(q, k), max_live or 1, bias is not None)
    return _heads_beside(q, v.shape[-1]), q.new_empty(B, H, N, dtype=torch.float32), *_kept(lists, max_live)


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
            key_lists = KeyLists(*lists[:6], *(lists[6:] if bias is not None else (None, None)))
        order_rn = backward_key_order(expiry, key_lists)
        if q.dtype == torch.float32:
            delta = torch.empty_like(lse)
        else:
            delta = delta_of_short_lists(d_out, q, k, v, lse, key_lists, block, scale)
        if hopper_suits(q, k, v, d_out):
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
    return _heads_beside(q, q.shape[-1]), _heads_beside(k, k.shape[-1]), _heads_beside(v, v.shape[-1]), d_bias


def _save_for_backward(ctx, inputs, output) -> None:
    q, k, v, expiry, bias, ctx.scale, ctx.max_live = inputs
    ctx.save_for_backward(q, k, v, expiry, bias, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zeros for outputs that have no gradient: the lists are large


def _backward(ctx, d_out: Tensor, *_d_others: Tensor):
    saved = ctx.saved_tensors  # asked once: under checkpointing every asking computes the layer again
    bias = saved[4]
    gradients = interval_attention_triton_backward(d_out, *saved[:7], list(saved[7:]), ctx.scale, ctx.max_live)
    d_bias = None if bias is None else gradients[3].to(bias.dtype)
    return *gradients[:3], None, d_bias, None, None


interval_attention_triton.register_autograd(_backward, setup_context=_save_for_backward)


def _build_lists(expiry: Tensor, block: int, bias: Tensor | None, max_live: int | None) -> KeyLists:
    expiry, bias = expiry.contiguous(), None if bias is None else bias.contiguous()
    return build_key_lists(expiry, block, most_alive(expiry) if max_live is None else max_live, bias)


def _kept(
    lists: KeyLists, max_live: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    nothing = lists.index_rbs.new_empty(0, dtype=torch.float32)
    arrival, ever, index, span, mask, total, bias, reference = (
        nothing.clone() if part is None or max_live is None else part for part in lists
    )
    return arrival, ever, index, span, mask, total, bias, reference


def _rows_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _heads_beside(like: Tensor, width: int) -> Tensor:
    """Empty (B, heads, N, width), laid out with a token's heads together, as projections read and write them."""
    B, heads, N, _ = like.shape
    return like.new_empty(B, N, heads, width).transpose(1, 2)
