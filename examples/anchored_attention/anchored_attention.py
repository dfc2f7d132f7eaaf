"""A sliding window, and every ``stride``-th token of a document in sight of all after it."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dma_lab.attention import (
    AttentionBackend,
    AttentionFlops,
    AttentionOptions,
    AttentionShape,
    HeadProjections,
    KeyValueCache,
    causal_pairs,
)
from dma_lab.kernels import Documents, document_bounds, interval_attention
from dma_lab.settings import Count


@dataclass(frozen=True)
class AnchoredOptions(AttentionOptions):
    window: Count | None = None  # half of the context unless given; the setting `window` is that of all backends
    stride: Count = 16


class AnchoredAttention(AttentionBackend):
    Options = AnchoredOptions

    def __init__(self, shape: AttentionShape, options: AnchoredOptions) -> None:
        window = options.window or max(1, shape.max_seq_len // 2)
        super().__init__(shape, replace(options, window=window))  # what a longer context then keeps
        self.window, self.stride = window, options.stride
        self.heads = HeadProjections(shape, qk_norm=True, rope_base=10_000.0)
        self.o_proj = nn.Linear(shape.n_heads * shape.head_dim, shape.d_model, bias=False)

    def forward(self, x: Tensor, document_ids: Tensor | Documents | None = None) -> Tensor:
        self.check_input(x, document_ids)
        q, k, v = self.heads(x)
        B, K, N, _ = k.shape
        start, end = document_bounds(document_ids, B, N, x.device)  # of each token's document
        position = torch.arange(N, device=x.device)
        anchor = (position - start) % self.stride == 0  # counted in the document: where that lies is nobody's business
        expiry = torch.where(anchor, end, torch.minimum(end, position + self.window))
        out = interval_attention(q, k, v, expiry[:, None].expand(B, K, N).int().contiguous())
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def new_cache(self, batch_size: int) -> KeyValueCache:
        return KeyValueCache()

    def step(self, x_t: Tensor, cache: KeyValueCache) -> Tensor:
        self.check_step(x_t, cache.position)
        q, k, v = self.heads(x_t, start=cache.position)
        gone = cache.position - self.window  # leaves the window with this token
        k, v = cache.append(k, v)
        if gone >= 0 and gone % self.stride:
            place = gone // self.stride + 1  # after the anchors before it
            k, v = (torch.cat((held[:, :, :place], held[:, :, place + 1 :]), dim=2) for held in (k, v))
            cache.k_bksd, cache.v_bksd = k, v
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def flops(self, seq_len: int) -> AttentionFlops:
        older = sum(-(-(t + 1 - self.window) // self.stride) for t in range(self.window, seq_len))  # anchors' pairs
        a_pair = 4 * self.n_heads * self.head_dim
        return AttentionFlops(
            projections=self.heads.flops(seq_len) + 2 * seq_len * self.o_proj.weight.numel(),
            selection=0,
            mixing=a_pair * (causal_pairs(seq_len, self.window) + older),
            mixing_dense=a_pair * causal_pairs(seq_len),
        )

    def cache_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        kept = min(seq_len, self.window) + -(-max(0, seq_len - self.window) // self.stride)
        return 2 * self.n_kv_heads * kept * self.head_dim * dtype.itemsize
