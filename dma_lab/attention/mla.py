"""Multi-head Latent Attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): keys and values from one small latent.

A position is remembered as ``c_kv = RMSNorm(W_dkv x)``, from which every head makes its keys and values, and one
rotated key ``k_rope`` that all heads share: RoPE cannot act on what comes from the latent, or ``W_uk`` could not be
folded into the query (section 2.1.3). Logits add the two parts, scaled by (d_nope + d_rope) ** -0.5, with d_nope and
the values' width both ``head_dim``.

Absorbed, MLA is attention with one key and value for all heads: ``q_nope . (W_uk c) = (W_uk^T q_nope) . c``, and
``W_uv`` comes after the sum over values. So decoding reads the latents as they lie in the cache.
"""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dma_lab.attention.base import (
    LATER,
    AttentionBackend,
    AttentionFlops,
    AttentionOptions,
    AttentionShape,
    causal_pairs,
)
from dma_lab.attention.places import places
from dma_lab.attention.recency import Recency, RecencySlope
from dma_lab.attention.rope import RopeBase, Rotary
from dma_lab.kernels import Documents, causal_attention
from dma_lab.messages import UserError
from dma_lab.settings import Count


@dataclass
class LatentCache:
    """c_kv and the rotated k_rope of every position so far, side by side: (B, positions, kv_rank + rope_dim)."""

    latent_bsr: Tensor | None = None
    position: int = 0

    def append(self, latent_bnr: Tensor) -> Tensor:
        """Add the newest position and return all that is held."""
        held = latent_bnr if self.latent_bsr is None else torch.cat((self.latent_bsr, latent_bnr), dim=1)
        self.latent_bsr = held
        self.position += 1
        return held


@dataclass(frozen=True)
class MultiHeadLatentOptions(AttentionOptions):
    kv_rank: Count | None = None
    """Width of c_kv; min(256, d_model / 4) unless given."""
    q_rank: Count | None = None
    """Width of the queries' latent ``RMSNorm(W_dq x)``; queries come from x itself unless given."""
    rope_dim: Count | None = None
    """Width of the rotated part, even; half of ``head_dim`` unless given, the paper's ratio."""
    rope_base: RopeBase = 10_000.0
    recency: Recency | None = field(default=None, metadata=LATER)
    """``slope``: a learned slope per head on logits (``recency.py``), every head having its own keys."""


class MultiHeadLatentAttention(AttentionBackend, name="mla"):
    """Every query sees every key before it. MLA has no key/value heads: ``n_kv_heads`` is taken and changes nothing.

    There is no QK-norm: MLA's norms are those on its latents.
    """

    Options = MultiHeadLatentOptions

    def __init__(self, shape: AttentionShape, options: MultiHeadLatentOptions) -> None:
        d_model, n_heads, head_dim, q_rank = shape.d_model, shape.n_heads, shape.head_dim, options.q_rank
        kv_rank = max(1, min(256, d_model // 4)) if options.kv_rank is None else options.kv_rank
        rope_dim = max(2, head_dim // 4 * 2) if options.rope_dim is None else options.rope_dim
        super().__init__(shape, replace(options, kv_rank=kv_rank, rope_dim=rope_dim))
        self.kv_rank, self.rope_dim = kv_rank, rope_dim
        for setting, rank in (("kv_rank", kv_rank), ("q_rank", q_rank)):
            if rank is not None and not 1 <= rank <= d_model:
                raise UserError(f"attention.{setting}={rank}: choose from 1 to d_model={d_model}, which it compresses.")
        if rope_dim % 2 or rope_dim > max(2, d_model):
            raise UserError(
                f"attention.rope_dim={rope_dim}: RoPE turns pairs; choose an even number up to d_model={d_model}."
            )
        qk_dim = head_dim + rope_dim
        self.scale = qk_dim**-0.5
        self.q_down = nn.Identity() if q_rank is None else nn.Linear(d_model, q_rank, bias=False)
        self.q_norm = nn.Identity() if q_rank is None else nn.RMSNorm(q_rank, eps=1e-6)
        self.q_proj = nn.Linear(d_model if q_rank is None else q_rank, n_heads * qk_dim, bias=False)
        # W_dkv and, below it, W_kr: one product makes all that is cached.
        self.kv_down = nn.Linear(d_model, kv_rank + rope_dim, bias=False)
        self.kv_norm = nn.RMSNorm(kv_rank, eps=1e-6)
        self.k_up = nn.Linear(kv_rank, n_heads * head_dim, bias=False)
        self.v_up = nn.Linear(kv_rank, n_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(n_heads * head_dim, d_model, bias=False)
        self.rotary = Rotary(rope_dim, shape.max_seq_len, options.rope_base)
        self.recency = RecencySlope(n_heads) if options.recency else None

    def queries(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """q_nope (B, H, N, head_dim) and the rotated q_rope (B, H, N, rope_dim)."""
        q_bhnd = self.q_proj(self.q_norm(self.q_down(x))).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        q_nope, q_rope = q_bhnd.split((self.head_dim, self.rope_dim), dim=-1)
        return q_nope, self.rotary(q_rope, start)

    def latents(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """c_kv (B, N, kv_rank) and the rotated k_rope (B, N, rope_dim): what is remembered of x (B, N, M)."""
        c_bnr, k_rope_bnd = self.kv_down(x).split((self.kv_rank, self.rope_dim), dim=-1)
        # Autocast may run the norm in float32; what is cached has one dtype.
        return self.kv_norm(c_bnr).to(c_bnr.dtype), self.rotary(k_rope_bnd, start)

    def forward(self, x: Tensor, document_ids: Tensor | Documents | None = None) -> Tensor:
        self.check_input(x, document_ids)
        q_bhnd = torch.cat(self.queries(x), dim=-1)
        c_bnr, k_rope_bnd = self.latents(x)
        k_nope, v = (up(c_bnr).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for up in (self.k_up, self.v_up))
        k_bhnd = torch.cat((k_nope, k_rope_bnd[:, None].expand(-1, self.n_heads, -1, -1)), dim=-1)
        bias = None if self.recency is None else self.recency(places(k_bhnd, document_ids))
        out_bhnd = causal_attention(q_bhnd, k_bhnd, v, document_ids=document_ids, scale=self.scale, bias=bias)
        return self.o_proj(out_bhnd.transpose(1, 2).flatten(2))

    def new_cache(self, batch_size: int) -> LatentCache:
        return LatentCache()

    def step(self, x_t: Tensor, cache: LatentCache) -> Tensor:
        self.check_step(x_t, cache.position)
        q_nope, q_rope = self.queries(x_t, start=cache.position)
        key_b1sr = cache.append(torch.cat(self.latents(x_t, start=cache.position), dim=-1))[:, None]
        # Absorbed: the heads are rows of queries against one shared key, whose first kv_rank entries are its value.
        q_bhr = torch.einsum("bhnd,hdr->bhr", q_nope, self.k_up.weight.unflatten(0, (self.n_heads, -1)))
        q_b1hr = torch.cat((q_bhr, q_rope[:, :, 0]), dim=-1)[:, None]
        out_b1hr = self._attend_to_latents(q_b1hr, key_b1sr)
        out_b1hd = torch.einsum("bnhr,hdr->bnhd", out_b1hr, self.v_up.weight.unflatten(0, (self.n_heads, -1)))
        return self.o_proj(out_b1hd.flatten(2))

    def _attend_to_latents(self, q_b1hr: Tensor, key_b1sr: Tensor) -> Tensor:
        """The newest query of every head over all positions' latents: the sums over values, (B, 1, H, kv_rank)."""
        value_b1sr = key_b1sr[..., : self.kv_rank]
        if self.recency is None:
            return F.scaled_dot_product_attention(q_b1hr, key_b1sr, value_b1sr, scale=self.scale)
        dtype = torch.promote_types(q_b1hr.dtype, torch.float32)  # half precision has no room for a slope's places
        S = key_b1sr.shape[2]
        bias_1hs = self.recency(torch.arange(1 - S, 1, device=key_b1sr.device)[None, None])
        logits_b1hs = self.scale * q_b1hr.to(dtype) @ key_b1sr.to(dtype).mT + bias_1hs
        return (logits_b1hs.softmax(-1) @ value_b1sr.to(dtype)).to(value_b1sr.dtype)

    def flops(self, seq_len: int) -> AttentionFlops:
        weights = sum(module.weight.numel() for module in self.modules() if isinstance(module, nn.Linear))
        flops_per_pair = 2 * (self.head_dim + self.rope_dim + self.head_dim)
        mixing = flops_per_pair * self.n_heads * causal_pairs(seq_len)
        return AttentionFlops(projections=2 * seq_len * weights, selection=0, mixing=mixing, mixing_dense=mixing)

    def cache_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        return seq_len * (self.kv_rank + self.rope_dim) * dtype.itemsize
