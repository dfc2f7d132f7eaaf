"""Gated DeltaNet (Yang, Kautz and Hatamizadeh, arXiv 2412.06464): a mixer whose cost is linear in the context.

Its block as in the paper's figure 1: q, k and v through a short causal convolution and SiLU, q and k to length 1; beta
= sigmoid(W x) and decay exp(-A softplus(W x + dt)), a number each per head; the delta rule (``kernels/delta/rule.py``);
RMSNorm over each head's answer, times SiLU(W x); and the map back. There is no RoPE: positions come from the decay and
the convolution.

Heads are as in Qwen3-Next: as many of q and k as there are key/value heads elsewhere, as many of v and so of states as
there are query heads, and all of width ``head_dim`` (the paper's values are twice as wide as its keys, here as wide).
Left out are the paper's hybrids with windows, and its random starts: A and dt are spread over the heads as quantiles of
what it draws them from, and a convolution begins as none.
"""

import math
from dataclasses import dataclass

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
from dma_lab.kernels import Documents, document_bounds
from dma_lab.kernels.delta.rule import CHUNK, delta_step, gated_delta_rule
from dma_lab.settings import Count


@dataclass(frozen=True)
class GatedDeltaNetOptions(AttentionOptions):
    convolution: Count = 4
    """Tokens that the convolution of q, k and v reaches, the own one included; 1: no convolution."""


@dataclass
class DeltaCache:
    """What decoding keeps: every head's state (B, H, D, D), float32 or more, and the convolution's last inputs
    (B, convolution - 1, channels)."""

    state_bhde: Tensor | None = None
    recent_btc: Tensor | None = None
    position: int = 0


class GatedDeltaNet(AttentionBackend, name="gated_deltanet"):
    """A state per head in place of keys; a packed document begins with an empty one."""

    Options = GatedDeltaNetOptions
    reads_keys = False

    def __init__(self, shape: AttentionShape, options: GatedDeltaNetOptions) -> None:
        super().__init__(shape, options)
        M, H, K, D = shape.d_model, shape.n_heads, shape.n_kv_heads, shape.head_dim
        self.q_proj = nn.Linear(M, K * D, bias=False)
        self.k_proj = nn.Linear(M, K * D, bias=False)
        self.v_proj = nn.Linear(M, H * D, bias=False)
        self.gate_proj = nn.Linear(M, H * D, bias=False)
        self.beta_proj = nn.Linear(M, H, bias=False)
        self.dt_proj = nn.Linear(M, H, bias=False)
        self.o_norm = nn.RMSNorm(D, eps=1e-6)
        self.o_proj = nn.Linear(H * D, M, bias=False)
        # The paper draws A from 0 to 16 and dt, by its logarithm, from 0.001 to 0.1.
        quantile_h = (torch.arange(H) + 0.5) / H
        dt_h = torch.exp(math.log(0.001) + (math.log(0.1) - math.log(0.001)) * quantile_h)
        self.A_log = nn.Parameter(torch.log(16 * quantile_h))
        self.dt_bias = nn.Parameter(dt_h + torch.log(-torch.expm1(-dt_h)))  # softplus of it is dt
        taps = torch.zeros((2 * K + H) * D, 1, options.convolution)
        taps[..., -1] = 1
        self.taps = nn.Parameter(taps)

    def forward(self, x: Tensor, document_ids: Tensor | Documents | None = None) -> Tensor:
        self.check_input(x, document_ids)
        B, N, _ = x.shape
        place_bn = torch.arange(N, device=x.device).expand(B, N)
        if document_ids is not None:
            place_bn = place_bn - document_bounds(document_ids, B, N, x.device)[0]
        qkv = self._qkv(x)
        mixed = qkv * self.taps[:, 0, -1]
        for back in range(1, self.taps.shape[2]):
            earlier = F.pad(qkv, (0, 0, back, 0))[:, :N].masked_fill((place_bn < back)[..., None], 0.0)
            mixed = mixed + earlier * self.taps[:, 0, -1 - back]
        answers = gated_delta_rule(*self._heads(mixed, x), document_ids)
        return self._output(x, answers)

    def _qkv(self, x: Tensor) -> Tensor:
        """What is convolved: (B, N, channels)."""
        return torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), dim=-1)

    def _heads(self, mixed: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The convolution's output and x -> q, k, v by head, logarithm of decay and beta, as ``gated_delta_rule`` has
        them."""
        K, D = self.n_kv_heads, self.head_dim
        b = self.beta_proj(x)
        q, k, v = F.silu(mixed).split((K * D, K * D, self.n_heads * D), dim=-1)
        q, k = (self._to_length_1(heads.unflatten(-1, (K, D))).to(b.dtype) for heads in (q, k))
        dt = F.softplus(self.dt_proj(x).to(_accurate(x)) + self.dt_bias)
        log_decay = -self.A_log.to(_accurate(x)).exp() * dt
        return q, k, v.unflatten(-1, (-1, D)).to(b.dtype), log_decay, b.to(_accurate(x)).sigmoid()

    @staticmethod
    def _to_length_1(heads: Tensor) -> Tensor:
        heads = heads.to(_accurate(heads))
        return heads * torch.rsqrt(heads.square().sum(-1, keepdim=True) + 1e-6)

    def _output(self, x: Tensor, answers_bnhd: Tensor) -> Tensor:
        normed = self.o_norm(answers_bnhd).flatten(2)
        return self.o_proj(normed * F.silu(self.gate_proj(x)))

    def new_cache(self, batch_size: int) -> DeltaCache:
        return DeltaCache()

    def step(self, x_t: Tensor, cache: DeltaCache) -> Tensor:
        self.check_step(x_t, cache.position)
        cache.position += 1
        qkv_b1c, (B, H, D) = self._qkv(x_t), (x_t.shape[0], self.n_heads, self.head_dim)
        if cache.state_bhde is None or cache.recent_btc is None:
            cache.state_bhde = x_t.new_zeros(B, H, D, D, dtype=_accurate(x_t))
            cache.recent_btc = qkv_b1c.new_zeros(B, self.taps.shape[2] - 1, qkv_b1c.shape[2])
        reach_btc = torch.cat((cache.recent_btc, qkv_b1c), dim=1)
        mixed_b1c = (reach_btc * self.taps[:, 0].T).sum(1, keepdim=True)
        q, k, v, log_decay, beta = (each[:, 0] for each in self._heads(mixed_b1c, x_t))
        answers_bhd, cache.state_bhde = delta_step(q, k, v, log_decay, beta, cache.state_bhde)
        cache.recent_btc = reach_btc[:, 1:].clone()  # a view would keep what it does not show
        return self._output(x_t, answers_bhd[:, None])

    def flops(self, seq_len: int) -> AttentionFlops:
        """Mixing is that of the chunked rule, causal pairs of each chunk alone; convolutions are not counted."""
        H, K, D = self.n_heads, self.n_kv_heads, self.head_dim
        pairs = seq_len // CHUNK * causal_pairs(CHUNK) + causal_pairs(seq_len % CHUNK)
        before = pairs - seq_len  # a token's own key is no part of its triangular system
        products = 2 * K * D * (before + pairs)  # keys with keys, queries with keys
        within = 2 * H * D * (2 * before + pairs)  # the systems solved for values and keys, and values summed
        by_state = 6 * H * D**2 * seq_len  # read by keys, read by queries, written
        maps = (self.q_proj, self.k_proj, self.v_proj, self.gate_proj, self.beta_proj, self.dt_proj, self.o_proj)
        return AttentionFlops(
            projections=2 * seq_len * sum(each.weight.numel() for each in maps),
            selection=0,
            mixing=products + within + by_state,
            mixing_dense=4 * H * D * causal_pairs(seq_len),
        )

    def cache_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        """As many after any number of tokens."""
        state = self.n_heads * self.head_dim**2 * torch.promote_types(dtype, torch.float32).itemsize
        channels, _, reach = self.taps.shape
        return state + (reach - 1) * channels * dtype.itemsize


def _accurate(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
