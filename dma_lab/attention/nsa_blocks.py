"""NSA's blocks (arXiv 2502.11089, section 3.3): where they lie, attention over their summaries, and which are selected.

A document's compressed block z is its tokens ``[z · stride, z · stride + block)``, whole ones only; its selection block
j is its tokens ``[j · selected_block, (j + 1) · selected_block)``. Both grids restart at every document, so that a
packed document has the blocks it has alone.

Letters beside the usual: T queries of a chunk, S keys, Z compressed blocks of a row, J selection blocks of a document.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Places(NamedTuple):
    """Where documents and their compressed blocks lie."""

    start_bn: Tensor
    """int64 (B, N), the first position of each position's document."""
    end_bn: Tensor
    """int64 (B, N), the end (exclusive) of that document."""
    last_bz: Tensor
    """int64 (B, Z), the last token of every compressed block; from N on where a row has fewer."""
    before_bn: Tensor
    """int64 (B, N), how many blocks the documents before each position's own have."""


def count_blocks(seq_len: int, block: int, stride: int) -> int:
    """Whole compressed blocks of one document; those of several documents in a row are never more (block >= stride)."""
    return max(0, (seq_len - block) // stride + 1)


def locate_blocks(start_bn: Tensor, end_bn: Tensor, block: int, stride: int) -> tuple[Tensor, Tensor]:
    """Where a row's compressed blocks begin, for any documents in it, in shapes that depend on N alone.

    Args:
        start_bn, end_bn: int64 (B, N), bounds of each position's document (``dma_lab.kernels.document_bounds``).

    Returns:
        first_bz: int64 (B, Z), first position of every block, ascending; N where a row has fewer than Z.
        before_bn: int64 (B, N), how many blocks the documents before each position's own have.
    """
    N = start_bn.shape[1]
    position_n = torch.arange(N, device=start_bn.device)
    opens_bn = ((position_n - start_bn) % stride == 0) & (position_n + block <= end_bn)
    first_bz = torch.where(opens_bn, position_n, N).sort(dim=-1).values[:, : count_blocks(N, block, stride)]
    before_bn = opens_bn.cumsum(-1) - opens_bn.long()
    return first_bz, before_bn.gather(1, start_bn)


def gather_blocks(x_bknd: Tensor, first_bz: Tensor, block: int, stride: int) -> Tensor:
    """The tokens of every compressed block: (B, K, N, D) -> (B, K, Z, block, D); unused blocks get any."""
    blocks: Tensor = _GatheredBlocks.apply(x_bknd, first_bz, block, stride)
    return blocks


class _GatheredBlocks(torch.autograd.Function):
    """Its gradients are gathered too, block by block that a token lies in: PyTorch's would be added up by atomics, in
    no fixed order and slowly.
    """

    @staticmethod
    def forward(ctx: Any, x_bknd: Tensor, first_bz: Tensor, block: int, stride: int) -> Tensor:
        B, K, N, D = x_bknd.shape
        ctx.save_for_backward(first_bz)
        ctx.N, ctx.block, ctx.stride = N, block, stride
        token_bzl = first_bz[..., None] + torch.arange(block, device=first_bz.device)
        index = token_bzl.clamp(max=N - 1).flatten(1)[:, None, :, None].expand(B, K, -1, D)
        return x_bknd.gather(2, index).unflatten(2, (first_bz.shape[1], block))

    @staticmethod
    def backward(ctx: Any, d_blocks: Tensor) -> tuple[Tensor | None, ...]:
        (first_bz,) = ctx.saved_tensors
        B, K, Z, block, D = d_blocks.shape
        d_bkld = d_blocks.flatten(2, 3)
        d_x = d_blocks.new_zeros(B, K, ctx.N, D)
        position_bn = torch.arange(ctx.N, device=first_bz.device).expand(B, -1).contiguous()
        newest_bn = torch.searchsorted(first_bz.contiguous(), position_bn, right=True) - 1
        for age in range(block // ctx.stride if Z else 0):
            z_bn = newest_bn - age
            place_bn = position_bn - first_bz.gather(1, z_bn.clamp(min=0))
            inside = (z_bn >= 0) & (place_bn < block)
            index_bn = torch.where(inside, z_bn * block + place_bn, 0)
            of_block = d_bkld.gather(2, index_bn[:, None, :, None].expand(B, K, -1, D))
            d_x = d_x + torch.where(inside[:, None, :, None], of_block, 0.0)
        return d_x, None, None, None


class BlockCompression(nn.Module):
    """φ of equation 7: the flattened block, its position embeddings added, through an MLP of width D.

    The paper leaves the MLP open; this one is shared by the heads: (.., block, D) -> (.., D).
    """

    def __init__(self, block: int, head_dim: int) -> None:
        super().__init__()
        self.position_ld = nn.Parameter(torch.zeros(block, head_dim))
        self.hidden = nn.Linear(block * head_dim, head_dim, bias=False)
        self.output = nn.Linear(head_dim, head_dim, bias=False)

    def forward(self, blocks: Tensor) -> Tensor:
        return self.output(F.silu(self.hidden((blocks + self.position_ld).flatten(-2))))


def attend_compressed(
    q_bhtd: Tensor,
    k_bkzd: Tensor,
    v_bkzd: Tensor,
    visible_btz: Tensor,
    scale: float,
    bias_bkz: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over block summaries (equation 7's branch): zeros for a query that sees no block. ``bias_bkz`` (B or 1,
    K, Z) is added to the logits of its block.

    Returns:
        (B, H, T, D), and p_cmp (equation 8), summed over the query heads of each group, detached, float32 or better
        (B, K, T, Z): the sum of equation 10, which commutes with that of equation 9.
    """
    B, H, T, D = q_bhtd.shape
    K, Z = k_bkzd.shape[1:3]
    logits = (q_bhtd * scale).reshape(B, K, H // K * T, D) @ k_bkzd.mT
    logits = logits.view(B, K, H // K, T, Z).to(torch.promote_types(logits.dtype, torch.float32))
    if bias_bkz is not None:
        logits = logits + bias_bkz[:, :, None, None]
    visible = visible_btz[:, None, None]
    # A query that sees nothing keeps finite logits, so that its zeros carry no NaN into the backward pass.
    logits = logits.masked_fill(~visible & visible.any(-1, keepdim=True), -torch.inf)
    weights = logits.softmax(dim=-1).masked_fill(~visible, 0.0)
    out = weights.to(v_bkzd.dtype).reshape(B, K, H // K * T, Z) @ v_bkzd
    return out.view(B, H, T, -1), weights.detach().sum(dim=2)


def block_importance(
    weights_bktz: Tensor, before_bt: Tensor, n_selection: int, block: int, stride: int, selected_block: int
) -> Tensor:
    """p_slc of equation 9: a compressed block's weight goes to each selection block once for every stride they share.

    Selection block j shares strides with the compressed blocks from ``j · r - (l - 1)`` to ``j · r + r - 1``,
    r = selected_block / stride and l = block / stride. (Equation 9 prints ``j · r - m - n``, which for blocks counted
    from zero is one selection block too early.)

    Args:
        weights_bktz: what ``attend_compressed`` gives; zero for the blocks of other documents.
        before_bt: compressed blocks of the row before each query's document.
        n_selection: J.

    Returns:
        (B, K, T, J), j counting from the start of the query's document.
    """
    B, K, T, _ = weights_bktz.shape
    # In strides: the lengths of both kinds of block, and a compressed block's offset from a selection block.
    length, r = block // stride, selected_block // stride
    offset = torch.arange(1 - length, r, device=weights_bktz.device)
    shared = (offset + length).clamp(max=r) - offset.clamp(min=0)
    padded = F.pad(weights_bktz, (length - 1, n_selection * r))
    index_btz = before_bt[..., None] + torch.arange(n_selection * r + length - 1, device=offset.device)
    of_document = padded.gather(-1, index_btz[:, None].expand(B, K, T, -1))
    return (of_document.unfold(-1, r + length - 1, r) * shared).sum(-1)


def select_blocks(importance_bktj: Tensor, own_bt: Tensor, count: int) -> Tensor:
    """Which blocks each query reads (equation 11): the first, its own, the one before, and the most important others.

    Of equally important blocks the more recent wins. A query reads ``min(count, own + 1)`` blocks.

    Args:
        own_bt: int64 (B, T), the selection block that the query lies in.
        count: blocks per query, at least 3.

    Returns:
        bool (B, K, T, J).
    """
    j = torch.arange(importance_bktj.shape[-1], device=own_bt.device)
    own = own_bt[:, None, :, None]
    available = j <= own
    ranked = importance_bktj.masked_fill((j == 0) | (j >= own - 1), torch.inf).masked_fill(~available, -torch.inf)
    best = ranked.argsort(dim=-1, stable=True)[..., -count:]
    return torch.zeros_like(ranked, dtype=torch.bool).scatter(-1, best, True) & available


def selected_pairs(seq_len: int, block: int, count: int) -> int:
    """(query, key) pairs per head where a query reads ``count`` blocks: its own up to itself, the others whole."""
    pairs = 0
    for own in range(-(-seq_len // block)):
        tokens = min(block, seq_len - own * block)
        pairs += tokens * min(own, count - 1) * block + tokens * (tokens + 1) // 2
    return pairs


def attend_selected(
    q_bhtd: Tensor,
    k_bksd: Tensor,
    v_bksd: Tensor,
    selected_bktj: Tensor,
    block_bs: Tensor,
    visible_bts: Tensor,
    scale: float,
    bias_bks: Tensor | None = None,
) -> Tensor:
    """Attention of each query over the visible keys of its selected blocks, by a mask over all S keys: (B, H, T, D).

    Args:
        block_bs: int64 (B, S), the selection block that each key lies in.
        visible_bts: bool (B, T, S), keys of the query's document that are not after it.
        bias_bks: (B, K, S), added to the logits of its key.
    """
    B, H, T, D = q_bhtd.shape
    K, S = k_bksd.shape[1:3]
    live = selected_bktj.gather(-1, block_bs[:, None, None].expand(B, K, T, S)) & visible_bts[:, None]
    dtype = torch.promote_types(q_bhtd.dtype, torch.float32)
    q, k, v = q_bhtd.to(dtype), k_bksd.to(dtype), v_bksd.to(dtype)
    logits = ((q * scale).reshape(B, K, H // K * T, D) @ k.mT).view(B, K, H // K, T, S)
    if bias_bks is not None:
        logits = logits + bias_bks[:, :, None, None]
    weights = logits.masked_fill(~live[:, :, None], -torch.inf).softmax(dim=-1).reshape(B, K, H // K * T, S)
    return (weights @ v).view(B, H, T, -1).to(v_bksd.dtype)
