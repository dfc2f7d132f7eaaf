"""Dynamic Mask Attention (Shi et al., arXiv 2508.02124): every query attends to the W best-scored keys it can see.

A key's score comes from its value alone: ``dt = W_Δ v`` (v flattened over the K heads), and by key/value head
``score = exp(A · softplus(dt))`` (section 3.1, equations 3 to 5). Scores of kept keys are added to their logits, which
is how A and W_Δ learn: the choice itself has no gradient. Because scores do not depend on the query, the mask is one
lifetime per key (``dma_lab.kernels.prefix_topk_expiry``), and a decoding cache never needs a key that has left.

With ``sinks`` and ``recent`` keys beside the chosen it is the variant that NOSA's authors trained (arXiv 2510.13602).
Their exp comes after the choice, which of single keys chooses the same, because exp keeps the order.

Controls lack what DMA claims: ``scores=random`` ranks keys by chance (``chance.py``), as many of them, and adds nothing
to their logits; ``scores=frozen`` leaves every key the score it starts with, so that the most recent W are kept.

``exp`` is taken of ``MAX_EXPONENT`` at most, which the paper leaves out. Keys beyond it are equals, of which the more
recent one wins, and their scores have no gradient.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dma_lab.attention.base import (
    LATER,
    TUNABLE,
    AttentionBackend,
    AttentionFlops,
    AttentionOptions,
    AttentionShape,
    causal_pairs,
)
from dma_lab.attention.chance import ChanceScores
from dma_lab.attention.heads import HeadProjections
from dma_lab.attention.places import places
from dma_lab.attention.reach import whole_context
from dma_lab.attention.recency import Recency, RecencySlope
from dma_lab.attention.rope import RopeBase
from dma_lab.kernels import Documents, admit_key, interval_attention, interval_attention_decode, prefix_topk_expiry
from dma_lab.kernels.decode.cache import EMPTY
from dma_lab.messages import warn_once
from dma_lab.settings import Count, CountOrNone, Positive

MAX_EXPONENT = 40.0
"""exp overflows float32 at 88.7, and the square of a score, which is in the gradient's norm, at half of that. At
exp(40) = 2.4e17 a logit of any query has long been rounded away beside the score (float32 holds 7 digits)."""


@dataclass
class LifetimeCache:
    """The keys that may still be seen: S = window + sinks + recent slots per key/value head, all there from the start.

    ``admit_key`` fills the slots and frees them; ``interval_attention_decode`` reads those that hold a key.
    """

    k_bksd: Tensor
    v_bksd: Tensor
    score_bks: Tensor
    """float32 (float64 in float64 models); of sinks infinity, which no key outranks."""
    sink_bks: Tensor
    """Scores of the sinks, by place."""
    arrived_bks: Tensor
    """int32, what each slot holds (``dma_lab.kernels.decode``)."""
    position: int = 0


@dataclass(frozen=True)
class DynamicMaskOptions(AttentionOptions):
    window: Count | None = None
    """Keys kept per query; half of ``max_seq_len`` unless given, the paper's ratio."""
    recent: CountOrNone = field(default=0, metadata=TUNABLE)
    """The last ``recent`` keys, the query's own included, are kept whatever their score."""
    score: Literal["exp", "linear"] = field(default="exp", metadata=TUNABLE)
    """``exp``: exp(A · softplus(dt)), the paper's; ``linear``: A · softplus(dt), the authors' later code."""
    qk_norm: bool = True
    """RMSNorm over each head's query and key."""
    rope_base: RopeBase = 10_000.0
    recency: Recency | None = field(default=None, metadata=LATER)
    """``slope``: a learned slope per key/value head on scores (``recency.py``); beside random ones on logits alone."""
    scores: Literal["learned", "random", "frozen"] = field(default="learned", metadata=LATER)
    """What ranks keys: what is learned of their values, chance, or nothing (all are equal, the recent first)."""
    score_rate: Positive = field(default=1.0, metadata=LATER | TUNABLE)
    """Factor on A, which is how much faster it learns: A begins at 0, is not decayed, and AdamW's updates do not grow
    with gradients."""
    score_scale: Positive = field(default=1.0, metadata=LATER | TUNABLE)
    """Factor on dt: W_Δ begins so much larger and learns so much faster."""
    sinks: CountOrNone = field(default=0, metadata=LATER)
    """The first ``sinks`` keys of a document are kept for all its queries, beside the window."""


_UNHEEDED = {"learned": (), "random": ("score", "score_rate", "score_scale"), "frozen": ("score_rate", "score_scale")}
"""By ``scores``: options that are of learned ones."""


def _say_without_effect(options: DynamicMaskOptions, max_seq_len: int) -> None:
    """Tell the user of options that change nothing, and of those with which no key is dropped."""
    for option in _UNHEEDED[options.scores]:
        if (value := getattr(options, option)) != getattr(DynamicMaskOptions, option):
            warn_once(
                f"attention.{option}={value} changes nothing: it is of learned scores, not {options.scores} ones."
            )
    assert options.window is not None
    # Keys of the window are chosen beside the sinks, but may be the recent ones.
    window, recent, sinks = ({name: getattr(options, name)} for name in ("window", "recent", "sinks"))
    if reached := whole_context(max_seq_len, window, recent, sinks, window | sinks, recent | sinks):
        biased = options.scores == "learned" or options.recency
        warn_once(
            f"{reached}: DMA drops no key and {'differs from MHA by its bias alone' if biased else 'is then MHA'}."
        )


class DynamicMaskAttention(AttentionBackend, name="dma"):
    """DMA over key lifetimes."""

    Options = DynamicMaskOptions

    def __init__(self, shape: AttentionShape, options: DynamicMaskOptions) -> None:
        window = max(1, shape.max_seq_len // 2) if options.window is None else options.window
        super().__init__(shape, replace(options, window=window))
        self.window, self.recent, self.score = window, options.recent, options.score
        self.score_rate, self.score_scale, self.sinks = options.score_rate, options.score_scale, options.sinks
        _say_without_effect(replace(options, window=window), shape.max_seq_len)
        self.heads = HeadProjections(shape, qk_norm=options.qk_norm, rope_base=options.rope_base)
        self.learned = options.scores == "learned"
        self.chance = ChanceScores(shape.n_kv_heads) if options.scores == "random" else None
        if self.learned:
            self.dt_proj = nn.Linear(shape.n_kv_heads * shape.head_dim, shape.n_kv_heads, bias=False)
            self.A = nn.Parameter(torch.zeros(shape.n_kv_heads))
        self.o_proj = nn.Linear(shape.n_heads * shape.head_dim, shape.d_model, bias=False)
        self.recency = RecencySlope(shape.n_kv_heads) if options.recency else None

    def scores(self, v_bknd: Tensor, document_ids: Tensor | Documents | None = None, start: int = 0) -> Tensor:
        """What ranks every key, float32 or better (B, K, N), from the values (B, K, N, D): finite where they are.

        With ``recency`` it grows with the key's place in its document, the first key's being ``start``.
        """
        if self.chance is not None:
            return self.chance(places(v_bknd, document_ids, start))
        score_bkn = self._content(v_bknd)
        return score_bkn if self.recency is None else score_bkn + self.recency(places(v_bknd, document_ids, start))

    def _content(self, v_bknd: Tensor) -> Tensor:
        if not self.learned:  # growth stays what it is at the start, 0
            ones_bkn = torch.ones_like(v_bknd[..., 0], dtype=torch.promote_types(v_bknd.dtype, torch.float32))
            return ones_bkn if self.score == "exp" else 0 * ones_bkn
        dt_bnk = self.dt_proj(v_bknd.transpose(1, 2).flatten(2))
        dt_bnk = dt_bnk.to(torch.promote_types(dt_bnk.dtype, torch.float32))
        growth_bnk = (self.score_rate * self.A.to(dt_bnk.dtype)) * F.softplus(self.score_scale * dt_bnk)
        score_bnk = growth_bnk.clamp(max=MAX_EXPONENT).exp() if self.score == "exp" else growth_bnk
        return score_bnk.transpose(1, 2)

    def lifetimes(self, score_bkn: Tensor, document_ids: Tensor | Documents | None = None) -> Tensor:
        """Expiry, int32 (B, K, N), of keys with these scores."""
        ranked_bkn = score_bkn.detach()
        if self.sinks:
            ranked_bkn = ranked_bkn.masked_fill(places(score_bkn[..., None], document_ids) < self.sinks, torch.inf)
        return prefix_topk_expiry(ranked_bkn, self.window + self.sinks, recent=self.recent, document_ids=document_ids)

    def _slope(self, place: Tensor) -> Tensor | None:
        """What is added to logits of keys at these places where scores are chance's, which no logit should see."""
        return None if self.recency is None else self.recency(place)

    def forward(self, x: Tensor, document_ids: Tensor | Documents | None = None) -> Tensor:
        self.check_input(x, document_ids)
        q, k, v = self.heads(x)
        score_bkn = self.scores(v, document_ids)
        expiry_bkn = self.lifetimes(score_bkn, document_ids)
        most = self.window + self.sinks + self.recent
        bias_bkn = score_bkn if self.chance is None else self._slope(places(k, document_ids))
        out_bhnd = interval_attention(q, k, v, expiry_bkn, bias=bias_bkn, max_live=most)
        return self.o_proj(out_bhnd.transpose(1, 2).flatten(2))

    def new_cache(self, batch_size: int) -> LifetimeCache:
        weight = self.o_proj.weight
        autocast = torch.is_autocast_enabled(weight.device.type)
        dtype = torch.get_autocast_dtype(weight.device.type) if autocast else weight.dtype
        slots = batch_size, self.n_kv_heads, self.window + self.sinks + self.recent
        score_dtype = torch.promote_types(dtype, torch.float32)
        return LifetimeCache(
            k_bksd=weight.new_zeros(*slots, self.head_dim, dtype=dtype),
            v_bksd=weight.new_zeros(*slots, self.head_dim, dtype=dtype),
            score_bks=weight.new_zeros(slots, dtype=score_dtype),
            sink_bks=weight.new_zeros(*slots[:2], self.sinks, dtype=score_dtype),
            arrived_bks=weight.new_full(slots, EMPTY, dtype=torch.int32),
        )

    def step(self, x_t: Tensor, cache: LifetimeCache) -> Tensor:
        self.check_step(x_t, cache.position)
        q, k, v = self.heads(x_t, start=cache.position)
        held = cache.k_bksd, cache.v_bksd, cache.score_bks, cache.arrived_bks
        score_bk = self.scores(v, start=cache.position)[:, :, 0]
        if cache.position < self.sinks:
            cache.sink_bks[:, :, cache.position] = score_bk
            score_bk = torch.full_like(score_bk, torch.inf)
        newest = k[:, :, 0], v[:, :, 0], score_bk
        admit_key(*held, *newest, cache.position, self.window + self.sinks, recent=self.recent)
        cache.position += 1
        arrived = cache.arrived_bks
        if self.chance is not None:
            bias = self._slope(torch.where(arrived < 0, -2 - arrived, arrived))
        elif self.sinks:
            of_sinks = cache.sink_bks.gather(-1, arrived.clamp(0, self.sinks - 1).long())
            bias = torch.where((arrived >= 0) & (arrived < self.sinks), of_sinks, cache.score_bks)
        else:
            bias = cache.score_bks
        out_bhnd = interval_attention_decode(q, cache.k_bksd, cache.v_bksd, arrived, bias=bias)
        return self.o_proj(out_bhnd.transpose(1, 2).flatten(2))

    def flops(self, seq_len: int) -> AttentionFlops:
        flops_per_pair = 4 * self.n_heads * self.head_dim
        weights = self.o_proj.weight.numel() + (self.dt_proj.weight.numel() if self.learned else 0)
        return AttentionFlops(
            projections=self.heads.flops(seq_len) + 2 * seq_len * weights,
            selection=0,
            mixing=flops_per_pair * self._live_pairs(seq_len),
            mixing_dense=flops_per_pair * causal_pairs(seq_len),
        )

    def _live_pairs(self, seq_len: int) -> int:
        """(query, key) pairs that live per head. How many of the recent keys are not among the best, which are kept in
        any case, depends on the data: as many as by chance, and none where scores prefer recent keys.
        """
        recent_first = self.chance is None and (not self.learned or self.recency is not None)
        if recent_first or not self.recent:
            return causal_pairs(seq_len, self.sinks + max(self.window, self.recent))
        more = 0.0
        for others in range(self.window + 1, seq_len - self.sinks + 1):  # keys seen beside the sinks
            recent = min(self.recent, others)
            more += recent - recent * self.window / others
        return causal_pairs(seq_len, self.window + self.sinks) + round(more)

    def cache_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        score_bytes = torch.promote_types(dtype, torch.float32).itemsize
        slot_bytes = 2 * self.head_dim * dtype.itemsize + score_bytes + torch.int32.itemsize
        slots = self.window + self.sinks + self.recent
        return self.n_kv_heads * (slots * slot_bytes + self.sinks * score_bytes)
