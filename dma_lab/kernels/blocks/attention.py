"""Attention of every query over the blocks of keys that it chose, and the choice."""

import torch
from torch import Tensor

from dma_lab.kernels.choice import note_kernel

_LARGEST_HEAD_DIM = 256  # of the Triton kernels


def selected_attention(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, end_bn: Tensor, *, block: int, scale: float | None = None
) -> Tensor:
    """Softmax attention of query ``t`` over the keys of its chosen blocks that are not after it, in Triton.

    Differentiable in q, k and v, deterministic, in memory linear in N. Query head ``h`` reads key/value head
    ``h // (H / K)``, whose choice is that of all its query heads.

    Args:
        q: (B, H, N, D), bfloat16, float16 or float32.
        k, v: (B, K, N, D), of q's dtype.
        chosen: int32 (B, K, N, S): the first keys of the blocks that each query reads, all different, in any order, its
            own block among them; -1 where it reads fewer. Blocks are ``block`` long and restart at every document;
            a query's are of its own document and not after it.
        end_bn: int32 (B, N), the end (exclusive) of each position's document.
        scale: multiplies q . k; D ** -0.5 unless given.

    Returns:
        (B, H, N, D).
    """
    from dma_lab.kernels.blocks.operator import selected_attention_triton

    note_kernel("block-sparse attention (Triton)")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return selected_attention_triton(q, k, v, chosen.contiguous(), end_bn.contiguous(), block, scale)[0]


def choose_blocks(
    q: Tensor,
    k_bkzd: Tensor,
    lse: Tensor,
    start_bn: Tensor,
    before_bn: Tensor,
    count: int,
    *,
    block: int,
    stride: int,
    selected_block: int,
    scale: float | None = None,
) -> Tensor:
    """The blocks that each query reads, as ``selected_attention`` takes them: int32 (B, K, N, count).

    Always its document's first block, its own and the one before; then those to which the compressed branch gives most
    weight (equations 9 and 10), of equal ones the more recent. No gradient.

    Args:
        q: (B, H, N, D).
        k_bkzd: (B, K, Z, D), the compressed keys, in the order of their blocks.
        lse: float32 (B, H, N), base-2 logarithms of the compressed branch's softmax sums; infinity where it sees none.
        start_bn: int32 (B, N), the first position of each position's document.
        before_bn: int32 (B, N), how many compressed blocks the documents before have.
        count: blocks that a query reads, at least 3.
        block: tokens of a compressed block.
        stride: tokens from one compressed block to the next.
        selected_block: tokens of a selection block.
        scale: of q . k in the compressed branch; D ** -0.5 unless given.
    """
    from dma_lab.kernels.blocks.choice import choose_blocks_triton

    scale = q.shape[-1] ** -0.5 if scale is None else scale
    bounds = start_bn.contiguous(), before_bn.contiguous()
    return choose_blocks_triton(q, k_bkzd, lse, *bounds, count, block, stride, selected_block, scale)


def unsupported(q: Tensor, slots: int) -> str | None:
    """Why the kernels do not take the inputs, if they do not."""
    B, H, N, D = q.shape
    if q.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"q is {q.dtype}; they take bfloat16, float16 and float32"
    if D > _LARGEST_HEAD_DIM:
        return f"q has head dim {D}; they take up to {_LARGEST_HEAD_DIM}"
    if B * H > 65_535:
        return f"q has {B} x {H} batch entries and heads; they take up to 65535"
    return f"{slots} blocks of {N} queries are past 2^31" if N * slots >= 2**31 else None
