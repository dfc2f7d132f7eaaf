"""Attention whose keys live as long as their places say: a backend is then one rule, and all else follows from it.

Windows, sinks, anchors and strides are of this kind: how many tokens a key is kept for depends on where in its document
it stands, not on what it holds. Its queries are one run, so ``interval_attention`` computes it exactly, with the fast
kernels on a GPU; and the rule alone says what a decoding cache holds and what attention costs.
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dma_lab.attention.base import AttentionBackend, AttentionFlops, AttentionShape, causal_pairs
from dma_lab.attention.heads import HeadProjections, KeyValueCache
from dma_lab.kernels import Documents, document_bounds, interval_attention

_NEVER = 2**62  # beyond all positions, and far enough from int64's end to be added to one


@dataclass
class LivingKeysCache(KeyValueCache):
    """The keys and values that live for the newest query, no others."""

    expiries: list[int] = field(default_factory=list)
    """Of each key held, the first position that no longer sees it."""


class PositionLifetimes(AttentionBackend):
    """Heads with QK-norm and RoPE, whose keys live by a rule of the subclass, ``lifetime``; the same in all heads."""

    def __init__(self, shape: AttentionShape, options: Any) -> None:
        super().__init__(shape, options)
        self.heads = HeadProjections(shape, qk_norm=True, rope_base=10_000.0)
        self.o_proj = nn.Linear(shape.n_heads * shape.head_dim, shape.d_model, bias=False)
        place = torch.arange(shape.max_seq_len, device="cpu")
        gone = self.expiry(place).clamp(max=shape.max_seq_len).bincount()[: shape.max_seq_len].cumsum(0)
        self.most_live = int((place + 1 - gone).max())
        """Keys that a query sees, at most. Kernels that are not told so count them, which waits for the GPU."""

    @abstractmethod
    def lifetime(self, place: Tensor) -> Tensor:
        """The rule, of ``options`` and ``max_seq_len``: for how many tokens, its own included, a key is kept.

        It is asked from the constructor on, before what a subclass sets there.

        Args:
            place: int64 of any shape, on any device: places in the key's document, the first being 0.

        Returns:
            integers of that shape. Less than 1 counts as 1, since every query sees its own key; ``max_seq_len`` or more
            is for ever.
        """

    def expiry(self, place: Tensor) -> Tensor:
        """int64: the first place that no longer sees the key at ``place``, wherever its document ends."""
        lifetime = self.lifetime(place).long().clamp(min=1)
        return torch.where(lifetime < self.max_seq_len, place + lifetime, _NEVER)

    def forward(self, x: Tensor, document_ids: Tensor | Documents | None = None) -> Tensor:
        self.check_input(x, document_ids)
        q, k, v = self.heads(x)
        B, K, N, _ = k.shape
        start_bn, end_bn = document_bounds(document_ids, B, N, x.device)
        expiry_bn = torch.minimum(start_bn + self.expiry(torch.arange(N, device=x.device) - start_bn), end_bn)
        expiry_bkn = expiry_bn[:, None].expand(B, K, N).int().contiguous()
        out_bhnd = interval_attention(q, k, v, expiry_bkn, max_live=self.most_live)
        return self.o_proj(out_bhnd.transpose(1, 2).flatten(2))

    def new_cache(self, batch_size: int) -> LivingKeysCache:
        return LivingKeysCache()

    def step(self, x_t: Tensor, cache: LivingKeysCache) -> Tensor:
        self.check_step(x_t, cache.position)
        t = cache.position
        q, k, v = self.heads(x_t, start=t)
        k, v = cache.append(k, v)
        # The rule on the host: a GPU would be waited for.
        cache.expiries.append(int(self.expiry(torch.tensor(t, device="cpu"))))
        living = [slot for slot, expiry in enumerate(cache.expiries) if expiry > t]
        if len(living) < len(cache.expiries):
            index = torch.tensor(living, device=k.device)
            k, v = (held.index_select(2, index) for held in (k, v))
            cache.k_bksd, cache.v_bksd, cache.expiries = k, v, [cache.expiries[slot] for slot in living]
        out_bhnd = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.o_proj(out_bhnd.transpose(1, 2).flatten(2))

    def flops(self, seq_len: int) -> AttentionFlops:
        place = torch.arange(seq_len, device="cpu")
        pairs = int((self.expiry(place).clamp(max=seq_len) - place).sum())
        flops_per_pair = 4 * self.n_heads * self.head_dim
        return AttentionFlops(
            projections=self.heads.flops(seq_len) + 2 * seq_len * self.o_proj.weight.numel(),
            selection=0,
            mixing=flops_per_pair * pairs,
            mixing_dense=flops_per_pair * causal_pairs(seq_len),
        )

    def cache_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        living = int((self.expiry(torch.arange(seq_len, device="cpu")) >= seq_len).sum())
        return 2 * self.n_kv_heads * living * self.head_dim * dtype.itemsize
