"""A learned preference for recent keys that depends on the key alone: ``r · j`` on every logit of the key at ``j``.

Softmax does not see what all logits of a query share, so ``r · j`` is ALiBi's ``-r · (t - j)`` (arXiv 2108.12409) up to
``r · t``, with a slope that learns. And because it is the key's own, it can rank keys too: between a sliding window
(large r) and a choice by content alone (r = 0) there is no jump, and a key still leaves once and for ever.

Positions count from the start of the key's document. float32 rounds ``r · j`` by up to 2^-24 of itself: at ALiBi's
steepest slope here, 1/2, by 6e-5 at 2,048 tokens, 4e-3 at 131,072. Very steep slopes cost kernels time: their softmax
has a fixed reference for each block of queries, with room for 44 nats of growth within the block, which is a slope of
0.33 where every query head has keys of its own, 0.68 where two share them, and so on; rows past it are computed a
second time.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Recency = Literal["slope"]


class RecencySlope(nn.Module):
    """One slope per head that has keys, begun at ALiBi's for as many heads: 2^(-8 h / K), h = 1 .. K."""

    def __init__(self, n_kv_heads: int) -> None:
        super().__init__()
        self.slope_k = nn.Parameter(torch.exp2(-8 * torch.arange(1, n_kv_heads + 1) / n_kv_heads))

    def forward(self, place: Tensor) -> Tensor:
        """Places in their documents, integers (B, 1 or K, N) (``places``), -> (B, K, N), float32 or better."""
        dtype = torch.promote_types(self.slope_k.dtype, torch.float32)
        return self.slope_k.to(dtype)[:, None] * place.to(dtype)
