"""Tensors in, tensors out: how long keys live, and attention over the live ones.

A causal mask in which every key is seen by one run of consecutive queries needs one integer a key: key ``j`` is seen by
the queries ``j <= t < expiry_j``. Causal attention, sliding windows, packed documents, sinks and DMA's dynamic mask are
all of this kind.

Dimension letters: B batch, N sequence, H query heads, K key/value heads, D head dim of q and k, W window.
"""

from dma_lab.kernels.decode import admit_key, interval_attention_decode
from dma_lab.kernels.flash import flash_attention, flash_attention_suits
from dma_lab.kernels.interval import interval_attention
from dma_lab.kernels.lifetimes import document_bounds, prefix_topk_expiry

__all__ = [
    "admit_key",
    "document_bounds",
    "flash_attention",
    "flash_attention_suits",
    "interval_attention",
    "interval_attention_decode",
    "prefix_topk_expiry",
]
