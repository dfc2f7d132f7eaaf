"""Multi-head attention with shared key/value heads: MHA (K = H), GQA (1 < K < H), MQA (K = 1).

Vaswani et al. 2017; Ainslie et al., arXiv 2305.13245. The gate is that of Qiu et al., arXiv 2505.06708, where it did
best (position G1, elementwise): ``sigmoid(W_g x)`` on every channel of every head's output, before the output map.
"""

from dataclasses import dataclass, field

import torch
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
from dma_lab.attention.recency import Recency, RecencySlope
from dma_lab.attention.rope import RopeBase
from dma_lab.kernels import Documents, causal_attention


@dataclass(frozen=True)
class MultiHeadOptions(AttentionOptions):
    qk_norm: bool = True
    """RMSNorm over each head's query and key."""
    rope_base: RopeBase = 10_000.0
    recency: Recency | None = field(default=None, metadata=LATER)
    """``slope``: a learned slope per key/value head on logits (``recency.py``)."""
    gate: bool = field(default=False, metadata=LATER)
    """A sigmoid gate on every channel of the heads' outputs."""


class MultiHeadAttention(AttentionBackend, name="mha"):
    """Every query sees every key before it."""

    Options = MultiHeadOptions

    def __init__(self, shape: AttentionShape, options: MultiHeadOptions) -> None:
        super().__init__(shape, options)
        self.heads = HeadProjections(shape, qk_norm=options.qk_norm, rope_base=options.rope_base)
        self.o_proj = nn.Linear(shape.n_heads * shape.head_dim, shape.d_model, bias=False)
        self.recency = RecencySlope(shape.n_kv_heads) if options.recency else None
        self.gate_proj = nn.Linear(shape.d_model, shape.n_heads * shape.head_dim, bias=False) if options.gate else None

    def output(self, x: Tensor, out_bhnd: Tensor) -> Tensor:
        """The heads' outputs (B, H, N, D), gated by the input x (B, N, M) where there is a gate, -> (B, N, M)."""
        out_bnm = out_bhnd.transpose(1, 2).flatten(2)
        return self.o_proj(out_bnm if self.gate_proj is None else out_bnm * self.gate_proj(x).sigmoid())

    def forward(self, x: Tensor, document_ids: Tensor | Documents | None = None) -> Tensor:
        self.check_input(x, document_ids)
        q, k, v = self.heads(x)
        bias = None if self.recency is None else self.recency(places(k, document_ids))
        return self.output(x, causal_attention(q, k, v, document_ids=document_ids, bias=bias))

    def new_cache(self, batch_size: int) -> KeyValueCache:
        return KeyValueCache()

    def step(self, x_t: Tensor, cache: KeyValueCache) -> Tensor:
        self.check_step(x_t, cache.position)
        q, k, v = self.heads(x_t, start=cache.position)
        k, v = cache.append(k, v)
        return self.output(x_t, attend_to_cache(q, k, v, self.recency))

    def flops(self, seq_len: int) -> AttentionFlops:
        mixing = 4 * self.n_heads * self.head_dim * causal_pairs(seq_len)
        outputs = self.o_proj.weight.numel() + (0 if self.gate_proj is None else self.gate_proj.weight.numel())
        projections = self.heads.flops(seq_len) + 2 * seq_len * outputs
        return AttentionFlops(projections=projections, selection=0, mixing=mixing, mixing_dense=mixing)

    def cache_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        return 2 * self.n_kv_heads * seq_len * self.head_dim * dtype.itemsize
