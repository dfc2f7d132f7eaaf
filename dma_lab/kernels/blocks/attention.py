"""Attention of every query over the blocks of keys that it chose, and the choice."""

import torch
from torch import Tensor

from dma_lab.kernels.choice import note_kernel

_LARGEST_HEAD_DIM = 256  # of the Triton kernels
_MASKED_BLOCKS = 32  # of a document, that the mask's numbers can tell apart


def selected_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chosen: Tensor,
    start_bn: Tensor,
    end_bn: Tensor,
    *,
    block: int,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of query ``t`` over the keys of its chosen blocks that are not after it, in Triton.

    Differentiable in q, k and v, deterministic, in memory linear in N. Query head ``h`` reads key/value head
    ``h // (H / K)``, whose choice is that of all its query heads. Where a query may choose half of a sequence's blocks,
    all pairs are computed under a mask, and else those of each block with the queries that chose it.

    Args:
        q: (B, H, N, D), bfloat16, float16 or float32.
        k, v: (B, K, N, D), of q's dtype.
        chosen: int32 (B, K, N, S): the first keys of the blocks that each query reads, all different, in any order, its
            own block among them; -1 where it reads fewer. Blocks are ``block`` long and restart at every document;
            a query's are of its own document and not after it.
        start_bn, end_bn: int32 (B, N), the first position of each position's document and its end (exclusive).
        scale: multiplies q . k, positive; D ** -0.5 unless given.

    Returns:
        (B, H, N, D).
    """
    from dma_lab.kernels.blocks.masked_operator import masked_attention_triton
    from dma_lab.kernels.blocks.operator import selected_attention_triton

    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen, start_bn, end_bn = chosen.contiguous(), start_bn.contiguous(), end_bn.contiguous()
    if by_masks(q.shape[2], chosen.shape[3], block):
        note_kernel("block-sparse attention by masks (Triton)")
        return masked_attention_triton(q, k, v, chosen, start_bn, end_bn, block, scale)[0]
    note_kernel("block-sparse attention (Triton)")
    return selected_attention_triton(q, k, v, chosen, end_bn, block, scale)[0]


def by_masks(seq_len: int, slots: int, block: int) -> bool:
    """Whether all pairs are computed under a mask: as long as a query may choose half of the blocks that there are.

    By shapes alone, so that a sequence is always computed alike.
    """
    return seq_len <= block * min(2 * slots, _MASKED_BLOCKS)


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
