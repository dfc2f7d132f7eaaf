"""DeepSeek Sparse Attention (DSA; DeepSeek-V3.2, arXiv 2512.02556, section 2.1): an indexer chooses each query's keys.

The lightning indexer scores every key that a query can see, ``I = sum over its J heads of w · ReLU(q · k)``, with
queries and weights of the query's token and one key per token (equation 1); the query then attends to the ``top_k``
best-scored keys, the same ones in all heads (equation 2). Of equal scores, which ReLU makes many, the more recent key's
counts.

The choice has no gradient. The indexer learns by an auxiliary loss alone, and nothing else does: over the chosen keys
the KL divergence of softmax(I) from the attention's own weights, summed over heads and normalised (equation 4), with
the indexer's input and these weights detached. The paper sums it over queries; here it is the mean, as the model's
loss is. The paper trains the indexer beside dense attention before keys are dropped; here keys are dropped, and the
indexer learns, from the first step. The paper's layer is MLA; here it is ordinary heads, as of the other backends.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dma_lab.attention.base import (
    AttentionBackend,
    AttentionFlops,
    AttentionOptions,
    AttentionShape,
    causal_pairs,
)
from dma_lab.attention.heads import HeadProjections, KeyValueCache
from dma_lab.attention.recomputed import recomputed
from dma_lab.attention.rope import RopeBase, Rotary
from dma_lab.kernels import Documents, document_bounds
from dma_lab.kernels.choice import choose_triton, note_kernel
from dma_lab.messages import UserError, warn_once
from dma_lab.settings import Count

_QUERY_CHUNK = 512  # queries whose logits exist at a time


@dataclass(frozen=True)
class DeepSeekSparseOptions(AttentionOptions):
    top_k: Count | None = None
    """Keys that a query attends to; half of ``max_seq_len`` unless given, as DMA's window."""
    index_heads: Count | None = None
    """Heads of the indexer; half as many as query heads unless given, DeepSeek's ratio (64 of 128)."""
    index_dim: Count | None = None
    """Width of its queries and keys, even; ``head_dim`` unless given (both are 128 at DeepSeek)."""
    qk_norm: bool = True
    """RMSNorm over each head's query and key."""
    rope_base: RopeBase = 10_000.0


class LightningIndexer(nn.Module):
    """What keys are scored by: LayerNorm on its keys, RoPE on both, as in DeepSeek's code."""

    def __init__(self, shape: AttentionShape, heads: int, dim: int, rope_base: float) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.q_proj = nn.Linear(shape.d_model, heads * dim, bias=False)
        self.k_proj = nn.Linear(shape.d_model, dim, bias=False)
        self.weight_proj = nn.Linear(shape.d_model, heads, bias=False)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.rotary = Rotary(dim, shape.max_seq_len, rope_base)

    def forward(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, M), its first token at ``start`` -> queries (B, J, N, E), weights (B, J, N), keys (B, N, E)."""
        k_bne = self.k_proj(x)
        q_bjne = self.rotary(self.q_proj(x).unflatten(-1, (self.heads, self.dim)).transpose(1, 2), start)
        weight_bjn = self.weight_proj(x).transpose(1, 2) * (self.heads * self.dim) ** -0.5
        # Autocast may run the norm in float32; what is multiplied has one dtype.
        return q_bjne.to(k_bne.dtype), weight_bjn, self.rotary(self.norm(k_bne), start).to(k_bne.dtype)


def index_scores(q_bjte: Tensor, weight_bjt: Tensor, k_bse: Tensor) -> Tensor:
    """Equation 1: (B, T, S), float32 or better."""
    B, J, T, E = q_bjte.shape
    products = (q_bjte.reshape(B, J * T, E) @ k_bse.mT).view(B, J, T, -1)
    dtype = torch.promote_types(products.dtype, torch.float32)
    return (products.to(dtype).relu() * weight_bjt.to(dtype)[..., None]).sum(1)


def keep_best(score_bts: Tensor, visible_bts: Tensor, count: int) -> Tensor:
    """Which visible keys are the ``count`` best-scored ones of each query: bool (B, T, S); of equal ones, the last."""
    if count >= score_bts.shape[-1]:
        return visible_bts
    score_bts = score_bts.masked_fill(~visible_bts, -torch.inf)
    least = score_bts.topk(count, dim=-1).values[..., -1:]
    above, equal = score_bts > least, (score_bts == least) & visible_bts
    later_equals = equal.flip(-1).cumsum(-1).flip(-1)  # itself included
    return above | (equal & (later_equals <= count - above.sum(-1, keepdim=True)))


@dataclass
class IndexedCache:
    """Keys and values of every position, and the indexer's keys (B, S, E)."""

    read: KeyValueCache = field(default_factory=KeyValueCache)
    index_bse: Tensor | None = None
    position: int = 0


class DeepSeekSparseAttention(AttentionBackend, name="dsa"):
    """DSA; a packed document's keys are its own."""

    Options = DeepSeekSparseOptions
    auxiliary_loss: ClassVar[bool] = True

    def __init__(self, shape: AttentionShape, options: DeepSeekSparseOptions) -> None:
        top_k = max(1, shape.max_seq_len // 2) if options.top_k is None else options.top_k
        index_heads = max(1, shape.n_heads // 2) if options.index_heads is None else options.index_heads
        index_dim = shape.head_dim if options.index_dim is None else options.index_dim
        if index_dim % 2:
            raise UserError(f"attention.index_dim={index_dim}: RoPE turns pairs; choose an even number.")
        super().__init__(shape, replace(options, top_k=top_k, index_heads=index_heads, index_dim=index_dim))
        self.top_k = top_k
        if self.top_k >= shape.max_seq_len:
            warn_once(
                f"attention.top_k={self.top_k} reaches the whole context of {shape.max_seq_len} tokens: DSA is then "
                "MHA beside an indexer."
            )
        self.heads = HeadProjections(shape, qk_norm=options.qk_norm, rope_base=options.rope_base)
        self.indexer = LightningIndexer(shape, index_heads, index_dim, options.rope_base)
        self.o_proj = nn.Linear(shape.n_heads * shape.head_dim, shape.d_model, bias=False)

    def forward(self, x: Tensor, document_ids: Tensor | Documents | None = None) -> Tensor:
        return self._forward(x, document_ids, False)[0]

    def forward_with_loss(self, x: Tensor, document_ids: Tensor | Documents | None = None) -> tuple[Tensor, Tensor]:
        return self._forward(x, document_ids, True)

    def _forward(self, x: Tensor, document_ids: Tensor | Documents | None, with_loss: bool) -> tuple[Tensor, Tensor]:
        """The layer's output, and the mean over queries of equation 4, nats (0 unless ``with_loss``)."""
        self.check_input(x, document_ids)
        choose_triton("auto", x.device, "attention=dsa keeps other keys for every query")
        note_kernel("token-sparse attention (PyTorch)")
        B, N, _ = x.shape
        q, k, v = self.heads(x)
        index_q, index_weight, index_k = self.indexer(x.detach())
        start_bn, _ = document_bounds(document_ids, B, N, x.device)
        outs, losses = [], []
        for t0 in range(0, N, _QUERY_CHUNK):
            t1 = min(t0 + _QUERY_CHUNK, N)
            at = slice(t0, t1)
            index = index_q[:, :, at], index_weight[:, :, at], index_k[:, :t1]
            keys = k[:, :, :t1], v[:, :, :t1]
            out, loss = recomputed(self._attend, q[:, :, at], *keys, *index, start_bn[:, at], with_loss)
            outs.append(out)
            losses.append(loss)
        out_bhnd = torch.cat(outs, dim=2)
        return self.o_proj(out_bhnd.transpose(1, 2).flatten(2)), torch.stack(losses).sum() / (B * N)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        index_q: Tensor,
        index_weight: Tensor,
        index_k: Tensor,
        start_bt: Tensor,
        with_loss: bool,
    ) -> tuple[Tensor, Tensor]:
        """Of the last T of S positions by a mask: (B, H, T, D), and the indexer's divergences, summed.

        ``start_bt``: the first position of each query's document. Masks are made here, lest all chunks' be kept.
        """
        (B, H, T, D), (_, K, S, _) = q.shape, k.shape
        position_s = torch.arange(S, device=q.device)
        visible_bts = (position_s >= start_bt[..., None]) & (position_s <= position_s[S - T :, None])
        score_bts = index_scores(index_q, index_weight, index_k)
        live_bts = keep_best(score_bts.detach(), visible_bts, self.top_k)
        logits = (q.reshape(B, K, H // K * T, D) @ k.mT).view(B, K, H // K, T, S)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * D**-0.5
        weights = logits.masked_fill(~live_bts[:, None, None], -torch.inf).softmax(-1)
        out = (weights.to(v.dtype).reshape(B, K, H // K * T, S) @ v).view(B, H, T, D)
        if not with_loss:
            return out, score_bts.new_zeros(())
        target_bts = weights.detach().mean((1, 2))
        log_index = score_bts.masked_fill(~live_bts, -torch.inf).log_softmax(-1).masked_fill(~live_bts, 0.0)
        return out, (torch.xlogy(target_bts, target_bts) - target_bts * log_index).sum()

    def new_cache(self, batch_size: int) -> IndexedCache:
        return IndexedCache()

    def step(self, x_t: Tensor, cache: IndexedCache) -> Tensor:
        self.check_step(x_t, cache.position)
        q, k, v = self.heads(x_t, start=cache.position)
        index_q, index_weight, index_k = self.indexer(x_t, start=cache.position)
        cache.position += 1
        k, v = cache.read.append(k, v)
        cache.index_bse = index_k if cache.index_bse is None else torch.cat((cache.index_bse, index_k), dim=1)
        score_b1s = index_scores(index_q, index_weight, cache.index_bse)
        live_b1s = keep_best(score_b1s, torch.ones_like(score_b1s, dtype=torch.bool), self.top_k)
        # Every sequence keeps as many.
        token_bs = live_b1s[:, 0].nonzero()[:, 1].view(len(x_t), -1)
        index = token_bs[:, None, :, None].expand(-1, self.n_kv_heads, -1, self.head_dim)
        out_bhnd = F.scaled_dot_product_attention(q, k.gather(2, index), v.gather(2, index), enable_gqa=True)
        return self.o_proj(out_bhnd.transpose(1, 2).flatten(2))

    def flops(self, seq_len: int) -> AttentionFlops:
        """The indexer scores every pair, a product and a weight for each of its heads, and learns by these scores; its
        input is detached."""
        indexer = self.indexer
        maps = indexer.q_proj, indexer.k_proj, indexer.weight_proj
        indexing = 2 * seq_len * sum(linear.weight.numel() for linear in maps)
        flops_per_pair = 4 * self.n_heads * self.head_dim
        return AttentionFlops(
            projections=self.heads.flops(seq_len) + 2 * seq_len * self.o_proj.weight.numel() + indexing,
            selection=2 * indexer.heads * (indexer.dim + 1) * causal_pairs(seq_len),
            mixing=flops_per_pair * causal_pairs(seq_len, self.top_k),
            mixing_dense=flops_per_pair * causal_pairs(seq_len),
            projections_saved=indexing,
        )

    def cache_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        return seq_len * (2 * self.n_kv_heads * self.head_dim + self.indexer.dim) * dtype.itemsize
