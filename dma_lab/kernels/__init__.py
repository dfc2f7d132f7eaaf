"""Tensors in, tensors out: how long keys live, and attention over the live ones.

A causal mask in which each key is seen by one run of consecutive queries is one integer per key: key ``j`` is seen by
the queries ``j <= t < expiry_j``. Causal attention, sliding windows, packed documents, sinks and DMA's dynamic mask are
all of this kind.

Rooms: ``causal/`` (dense, windowed and packed attention by whatever is fastest there), ``selection/`` (scores to
expiries), ``interval/`` (attention over lifetimes: the operator, its key lists, and the kernels, under the same names
for any GPU in ``triton/`` and for Hopper in ``hopper/``), ``blocks/`` (NSA: attention over chosen blocks of keys, and
the choice), ``decode/`` (the cache), ``delta/`` (the gated delta rule: a state in place of keys).

Dimension letters, in capitals for sizes and as suffixes of tensors (``q_bhnd``):

- B batch, N sequence, H query heads, K key/value heads, D head dim of q and k, E head dim of v, W window
- R rows: the key/value heads of all batch entries, B * K
- S slots: of a cache, or of a query (the blocks that it chose); g query heads of a key/value head
- Z compressed blocks of a row, J selection blocks of a document, l places of a head's list of queries
- i blocks of queries, f tiles of a list (a flag each), x chunks of positions, u buckets of ranks or windows of
  positions
- in a kernel's tile: a attending rows (queries times the query heads that share the tile), s slots (keys, or places of
  a list or cache), q queries, p places of a piece of a list

A kernel's last argument, ``C``, is no size: it is what the kernel is compiled for (``QueryConfig`` and its like).
``j`` is a key's position and ``t`` a query's.
"""

from dma_lab.kernels.causal.attention import causal_attention
from dma_lab.kernels.decode.cache import admit_key, interval_attention_decode
from dma_lab.kernels.documents import Documents, document_bounds
from dma_lab.kernels.interval.attention import interval_attention
from dma_lab.kernels.selection.lifetimes import prefix_topk_expiry

__all__ = [
    "Documents",
    "admit_key",
    "causal_attention",
    "document_bounds",
    "interval_attention",
    "interval_attention_decode",
    "prefix_topk_expiry",
]
