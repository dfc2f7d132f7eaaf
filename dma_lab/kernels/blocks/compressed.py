"""Attention over summaries of blocks of keys (NSA's compressed branch), as attention over lifetimes.

A query sees a block's summary once the block is whole: the summary arrives with the block's last token and lives as
long as its document. At most one arrives with a token, so summaries stand where those tokens do, among keys that never
live.
"""

import torch
from torch import Tensor

from dma_lab.kernels.choice import note_kernel


def compressed_attention(
    q: Tensor, k_bkzd: Tensor, v_bkzd: Tensor, last_bz: Tensor, end_bn: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention of query ``t`` over the summaries of its document's blocks that end at or before it, in Triton.

    Differentiable in q, k and v; deterministic.

    Args:
        q: (B, H, N, D), bfloat16, float16 or float32.
        k_bkzd, v_bkzd: (B, K, Z, D), of q's dtype.
        last_bz: int64 (B, Z), the last token of every block, all different; from N on where a row has fewer blocks.
        end_bn: int64 (B, N), the end (exclusive) of each position's document.
        scale: multiplies q . k; D ** -0.5 unless given.

    Returns:
        (B, H, N, D), zeros for a query that sees no block; and the base-2 logarithms of its softmax sums, float32
        (B, H, N), without gradients, infinity for such a query.
    """
    from dma_lab.kernels.interval.operator import interval_attention_triton

    note_kernel("block summaries as lifetimes")
    (B, K, Z, D), N = k_bkzd.shape, q.shape[2]
    at_bz = last_bz.clamp(max=N)  # one place more, for the blocks that are not
    index = at_bz[:, None, :, None].expand(B, K, Z, D)
    k, v = (x.new_zeros(B, K, N + 1, D).scatter(2, index, x)[:, :, :N] for x in (k_bkzd, v_bkzd))
    never_bn = torch.arange(N + 1, device=q.device).expand(B, N + 1)
    expiry_bn = never_bn.scatter(1, at_bz, end_bn.gather(1, at_bz.clamp(max=N - 1)))[:, :N]
    expiry_bkn = expiry_bn.to(torch.int32)[:, None].expand(B, K, N)
    scale = D**-0.5 if scale is None else scale
    return interval_attention_triton(q, k, v, expiry_bkn, None, scale, max(1, Z))[:2]
