"""What the backends with ordinary heads share: projections with QK-norm and RoPE, and the key/value cache."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dma_lab.attention.base import AttentionShape
from dma_lab.attention.recency import RecencySlope
from dma_lab.attention.rope import Rotary
from dma_lab.kernels import interval_attention_decode


class QKNorm(nn.RMSNorm):
    """RMSNorm over a head's query or key (arXiv 2010.04245); what its gain begins at, ``initialise`` decides."""

    def __init__(self, head_dim: int) -> None:
        super().__init__(head_dim, eps=1e-6)


class HeadProjections(nn.Module):
    """x -> q, k, v by head, with QK-norm and then RoPE."""

    def __init__(self, shape: AttentionShape, *, qk_norm: bool, rope_base: float) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.q_proj = nn.Linear(shape.d_model, shape.n_heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.d_model, shape.n_kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.d_model, shape.n_kv_heads * shape.head_dim, bias=False)
        self.q_norm = QKNorm(shape.head_dim) if qk_norm else nn.Identity()
        self.k_norm = QKNorm(shape.head_dim) if qk_norm else nn.Identity()
        self.rotary = Rotary(shape.head_dim, shape.max_seq_len, rope_base)

    def forward(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, M), whose first token is at position ``start`` -> q (B, H, N, D), k and v (B, K, N, D)."""
        q_bnhd, k_bnkd, v_bnkd = (
            heads.unflatten(-1, (-1, self.head_dim)) for heads in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        # Norms before heads change places, so that a compiler fuses them with RoPE.
        q_bhnd = self.rotary(self.q_norm(q_bnhd).transpose(1, 2), start)
        k_bknd = self.rotary(self.k_norm(k_bnkd).transpose(1, 2), start)
        # Autocast may run the norms in float32; what attends has one dtype.
        return q_bhnd.to(v_bnkd.dtype), k_bknd.to(v_bnkd.dtype), v_bnkd.transpose(1, 2)

    def flops(self, seq_len: int) -> int:
        """Forward FLOPs over one sequence."""
        weights = self.q_proj.weight.numel() + self.k_proj.weight.numel() + self.v_proj.weight.numel()
        return 2 * seq_len * weights


class KeyValueProjections(nn.Module):
    """Keys and values alone: x (B, N, M) -> k and v, (B, K, N, D) each, neither normed nor rotated."""

    def __init__(self, shape: AttentionShape, qk_norm: bool) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.k_proj = nn.Linear(shape.d_model, shape.n_kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.d_model, shape.n_kv_heads * shape.head_dim, bias=False)
        self.k_norm = QKNorm(shape.head_dim) if qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k_bnkd, v_bnkd = (projection(x).unflatten(-1, (-1, self.head_dim)) for projection in (self.k_proj, self.v_proj))
        return k_bnkd.transpose(1, 2), v_bnkd.transpose(1, 2)


@dataclass
class KeyValueCache:
    """Keys and values seen so far, (B, K, positions kept, D) each, oldest first."""

    k_bksd: Tensor | None = None
    v_bksd: Tensor | None = None
    position: int = 0

    def append(self, k_bknd: Tensor, v_bknd: Tensor, keep: int | None = None, sinks: int = 0) -> tuple[Tensor, Tensor]:
        """Add the newest keys and values, keep the last ``keep`` positions (all by default) and the first ``sinks``,
        return what is held.
        """
        if self.k_bksd is not None and self.v_bksd is not None:
            k_bknd = torch.cat((self.k_bksd, k_bknd), dim=2)
            v_bknd = torch.cat((self.v_bksd, v_bknd), dim=2)
        if keep is not None and k_bknd.shape[2] > sinks + keep:
            # A copy, because a view would keep the dropped positions in memory.
            k_bknd, v_bknd = (torch.cat((held[:, :, :sinks], held[:, :, -keep:]), dim=2) for held in (k_bknd, v_bknd))
        self.k_bksd, self.v_bksd = k_bknd, v_bknd
        self.position += 1
        return k_bknd, v_bknd


def attend_to_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    recency: RecencySlope | None,
    *,
    sinks: int = 0,
    dropped: int = 0,
    place_bks: Tensor | None = None,
) -> Tensor:
    """The newest query, (B, H, 1, D), over the keys and values held, (B, K, S, D): those at ``place_bks``, or of
    consecutive positions, but that after the first ``sinks`` there are ``dropped`` missing.
    """
    if recency is None:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    B, K, S, _ = k.shape
    held_bks = torch.arange(S, dtype=torch.int32, device=k.device).expand(B, K, S).contiguous()
    if place_bks is None:  # counted from the oldest key held: a query sees differences alone
        place_bks = held_bks + dropped * (held_bks >= sinks) if sinks else held_bks
    return interval_attention_decode(q, k, v, held_bks, bias=recency(place_bks))
