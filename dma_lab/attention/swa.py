"""Sliding window attention (Longformer, arXiv 2004.05150; Mistral 7B, arXiv 2310.06825): the last W keys, own included.

Key j is seen by the queries ``j <= t < j + W`` of its document, so a decoding cache never holds more than W positions.
With sinks the first keys of a document stay for all of it (StreamingLLM, arXiv 2309.17453; trained with them here, and
every key at its own position).
"""

from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from dma_lab.attention.base import (
    LATER,
    AttentionBackend,
    AttentionFlops,
    AttentionOptions,
    AttentionShape,
    causal_pairs,
)
from dma_lab.attention.heads import HeadProjections, KeyValueCache, attend_to_cache
from dma_lab.attention.places import places
from dma_lab.attention.reach import whole_context
from dma_lab.attention.recency import Recency, RecencySlope
from dma_lab.attention.rope import RopeBase
from dma_lab.kernels import Documents, causal_attention
from dma_lab.messages import warn_once
from dma_lab.settings import Count, CountOrNone


@dataclass(frozen=True)
class SlidingWindowOptions(AttentionOptions):
    window: Count | None = None
    """Keys that a query sees; half of ``max_seq_len`` unless given."""
    qk_norm: bool = True
    """RMSNorm over each head's query and key."""
    rope_base: RopeBase = 10_000.0
    recency: Recency | None = field(default=None, metadata=LATER)
    """``slope``: a learned slope per key/value head on logits (``recency.py``)."""
    sinks: CountOrNone = field(default=0, metadata=LATER)
    """The first ``sinks`` keys of a document are seen by all its queries."""
    full_every: Annotated[int, Field(ge=2, le=512)] | None = field(default=None, metadata=LATER)
    """Every n-th layer of the model, n being this, sees every key, as MHA (``AttentionConfig.of_layer``)."""


class SlidingWindowAttention(AttentionBackend, name="swa"):
    """Every query sees the last ``window`` keys of its document, its own included, and its first ``sinks``."""

    Options = SlidingWindowOptions

    def __init__(self, shape: AttentionShape, options: SlidingWindowOptions) -> None:
        window = max(1, shape.max_seq_len // 2) if options.window is None else options.window
        super().__init__(shape, replace(options, window=window))
        self.window, self.sinks = window, options.sinks
        kept = {"window": window}, {"sinks": self.sinks}, {"window": window, "sinks": self.sinks}
        if reached := whole_context(shape.max_seq_len, *kept):
            warn_once(f"{reached}: SWA is then MHA.")
        self.heads = HeadProjections(shape, qk_norm=options.qk_norm, rope_base=options.rope_base)
        self.o_proj = nn.Linear(shape.n_heads * shape.head_dim, shape.d_model, bias=False)
        self.recency = RecencySlope(shape.n_kv_heads) if options.recency else None

    def forward(self, x: Tensor, document_ids: Tensor | Documents | None = None) -> Tensor:
        self.check_input(x, document_ids)
        q, k, v = self.heads(x)
        bias = None if self.recency is None else self.recency(places(k, document_ids))
        out_bhnd = causal_attention(q, k, v, window=self.window, sinks=self.sinks, document_ids=document_ids, bias=bias)
        return self.o_proj(out_bhnd.transpose(1, 2).flatten(2))

    def new_cache(self, batch_size: int) -> KeyValueCache:
        return KeyValueCache()

    def step(self, x_t: Tensor, cache: KeyValueCache) -> Tensor:
        self.check_step(x_t, cache.position)
        q, k, v = self.heads(x_t, start=cache.position)
        k, v = cache.append(k, v, keep=self.window, sinks=self.sinks)
        dropped = cache.position - k.shape[2]
        out_bhnd = attend_to_cache(q, k, v, self.recency, sinks=self.sinks, dropped=dropped)
        return self.o_proj(out_bhnd.transpose(1, 2).flatten(2))

    def flops(self, seq_len: int) -> AttentionFlops:
        flops_per_pair = 4 * self.n_heads * self.head_dim
        return AttentionFlops(
            projections=self.heads.flops(seq_len) + 2 * seq_len * self.o_proj.weight.numel(),
            selection=0,
            mixing=flops_per_pair * causal_pairs(seq_len, self.window + self.sinks),
            mixing_dense=flops_per_pair * causal_pairs(seq_len),
        )

    def cache_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        return 2 * self.n_kv_heads * min(seq_len, self.window + self.sinks) * self.head_dim * dtype.itemsize
