"""Dynamic Mask Attention (Shi et al., arXiv 2508.02124): every query attends to the W best-scored keys it can see.

A key's score comes from its value alone: ``dt = W_Δ v`` (v flattened over the K heads), and by key/value head
``score = exp(A · softplus(dt))`` (section 3.1, equations 3 to 5). Scores of kept keys are added to their logits, which
is how A and W_Δ learn: the choice itself has no gradient. Because scores do not depend on the query, the mask is one
lifetime a key (``dma_lab.kernels.prefix_topk_expiry``), and a decoding cache never needs a key that has left.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dma_lab.attention.base import AttentionBackend, AttentionFlops, causal_pairs
from dma_lab.attention.heads import HeadProjections
from dma_lab.kernels import interval_attention, prefix_topk_expiry
from dma_lab.messages import UserError, announce_once


@dataclass
class LifetimeCache:
    """The keys that may still be seen, oldest first: at most window + recent of them a key/value head."""

    k_bksd: Tensor | None = None
    v_bksd: Tensor | None = None
    score_bks: Tensor | None = None
    """float32 (float64 in float64 models)."""
    arrived_bks: Tensor | None = None
    """int32, position of each key."""
    position: int = 0


class DynamicMaskAttention(AttentionBackend, name="dma"):
    """DMA over key lifetimes.

    Args:
        window: keys kept a query; half of ``max_seq_len`` unless given, the paper's ratio.
        recent: the last ``recent`` keys, the query's own included, are kept whatever their score.
        score: ``exp``: exp(A · softplus(dt)), the paper's; ``linear``: A · softplus(dt), the authors' later code.
        qk_norm: RMSNorm over each head's query and key.
        rope_base: base of the rotary frequencies.
    """

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        max_seq_len: int,
        window: int | None = None,
        recent: int = 0,
        score: str = "exp",
        qk_norm: bool = True,
        rope_base: float = 10_000.0,
    ) -> None:
        shape = {"d_model": d_model, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim}
        super().__init__(**shape, max_seq_len=max_seq_len)
        if window is not None and window < 1:
            raise UserError(f"attention.window={window}: a query must keep at least 1 key.")
        if recent < 0:
            raise UserError(f"attention.recent={recent}: it must be 0 or more.")
        if score not in ("exp", "linear"):
            raise UserError(f"attention.score={score}: choose exp or linear.")
        self.window = max(1, max_seq_len // 2) if window is None else window
        if self.window >= max_seq_len:
            announce_once(
                f"attention.window={self.window} reaches the whole context of {max_seq_len} tokens: "
                "DMA drops no key and differs from MHA by its bias alone."
            )
        self.recent, self.score = recent, score
        self.heads = HeadProjections(**shape, max_seq_len=max_seq_len, qk_norm=qk_norm, rope_base=rope_base)
        self.dt_proj = nn.Linear(n_kv_heads * head_dim, n_kv_heads, bias=False)
        self.A = nn.Parameter(torch.zeros(n_kv_heads))
        self.o_proj = nn.Linear(n_heads * head_dim, d_model, bias=False)

    def scores(self, v_bknd: Tensor) -> Tensor:
        """Score of every key, float32 or better (B, K, N), from the values (B, K, N, D)."""
        dt_bnk = self.dt_proj(v_bknd.transpose(1, 2).flatten(2))
        dt_bnk = dt_bnk.to(torch.promote_types(dt_bnk.dtype, torch.float32))
        growth_bnk = self.A.to(dt_bnk.dtype) * F.softplus(dt_bnk)
        return (growth_bnk.exp() if self.score == "exp" else growth_bnk).transpose(1, 2)

    def forward(self, x: Tensor, document_ids: Tensor | None = None) -> Tensor:
        self.check_input(x, document_ids)
        q, k, v = self.heads(x)
        score_bkn = self.scores(v)
        expiry_bkn = prefix_topk_expiry(score_bkn, self.window, recent=self.recent, document_ids=document_ids)
        most = self.window + self.recent
        out_bhnd = interval_attention(q, k, v, expiry_bkn, bias=score_bkn, max_live=most)
        return self.o_proj(out_bhnd.transpose(1, 2).flatten(2))

    def new_cache(self, batch_size: int) -> LifetimeCache:
        return LifetimeCache()

    def step(self, x_t: Tensor, cache: LifetimeCache) -> Tensor:
        self.check_step(x_t, cache.position)
        q, k, v = self.heads(x_t, start=cache.position)
        live_bks = self._admit(k, v, self.scores(v), cache)
        groups = self.n_heads // self.n_kv_heads
        bias_bks = cache.score_bks.masked_fill(~live_bks, -torch.inf).to(q.dtype)
        out_bhnd = F.scaled_dot_product_attention(
            q,
            cache.k_bksd,
            cache.v_bksd,
            attn_mask=bias_bks.repeat_interleave(groups, dim=1)[:, :, None],
            enable_gqa=True,
        )
        return self.o_proj(out_bhnd.transpose(1, 2).flatten(2))

    def _admit(self, k: Tensor, v: Tensor, score: Tensor, cache: LifetimeCache) -> Tensor:
        """Put the newest key into the cache and drop what has expired; returns which of those held live now.

        At most window + recent keys can be live, so whenever more are held one of them has left for ever.
        """
        arrived = torch.full(score.shape, cache.position, dtype=torch.int32, device=score.device)
        held = [cache.k_bksd, cache.v_bksd, cache.score_bks, cache.arrived_bks]
        held = [
            new if old is None else torch.cat((old, new), dim=2)
            for old, new in zip(held, (k, v, score, arrived), strict=True)
        ]
        k_bksd, v_bksd, score_bks, arrived_bks = held
        S = score_bks.shape[2]
        # Keys are held in order of arrival, so a stable ascending sort lets the more recent of equal scores win.
        best = score_bks.argsort(dim=-1, stable=True)[..., max(0, S - self.window) :]
        live_bks = torch.zeros_like(score_bks, dtype=torch.bool).scatter_(-1, best, True)
        live_bks |= arrived_bks > cache.position - self.recent
        if S > self.window + self.recent:
            expired_bk1 = live_bks.to(torch.uint8).argmin(dim=-1, keepdim=True)
            kept = torch.arange(S - 1, device=score.device).expand(*expired_bk1.shape[:2], -1)
            kept = kept + (kept >= expired_bk1)
            k_bksd = k_bksd.gather(2, kept[..., None].expand(-1, -1, -1, self.head_dim))
            v_bksd = v_bksd.gather(2, kept[..., None].expand(-1, -1, -1, self.head_dim))
            score_bks, arrived_bks, live_bks = (held.gather(2, kept) for held in (score_bks, arrived_bks, live_bks))
        cache.k_bksd, cache.v_bksd, cache.score_bks, cache.arrived_bks = k_bksd, v_bksd, score_bks, arrived_bks
        cache.position += 1
        return live_bks

    def flops(self, seq_len: int) -> AttentionFlops:
        # A query keeps min(t + 1, W) keys by score; keys kept by `recent` alone depend on the data and are few.
        a_pair = 4 * self.n_heads * self.head_dim
        projections = self.heads.flops(seq_len) + 2 * seq_len * (
            self.o_proj.weight.numel() + self.dt_proj.weight.numel()
        )
        return AttentionFlops(
            projections=projections,
            selection=0,
            mixing=a_pair * causal_pairs(seq_len, self.window),
            mixing_dense=a_pair * causal_pairs(seq_len),
        )

    def cache_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        held = min(seq_len, self.window + self.recent)
        score_bytes = torch.promote_types(dtype, torch.float32).itemsize
        return self.n_kv_heads * held * (2 * self.head_dim * dtype.itemsize + score_bytes + torch.int32.itemsize)
