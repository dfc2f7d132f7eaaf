"""Native Sparse Attention (NSA; Yuan et al., arXiv 2502.11089): three gated branches, each with its own keys.

- compressed: blocks of keys, and of values, made into one by an MLP φ (section 3.3.1); a query sees a block once its
  last token is at or before the query;
- selected: the keys of the blocks to which the compressed branch gives most weight (section 3.3.2); the choice has no
  gradient;
- sliding: the last W keys (section 3.3.3).

The query is shared, and so is its rotation. Keys of the selected and sliding branches are rotated as anywhere. Keys are
compressed *before* they are rotated, and a compressed key turns as its block's last token: φ is not linear, so on
rotated keys it would see absolute positions, and a block's summary would change with where its document lies. Order
within the block is what φ's own position embeddings are for. A slope (``recency``) is one for the three branches, and
a compressed key has its block's last token's place for it, too; the choice of blocks sees it as the compressed branch's
weights do.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from dma_lab.attention.base import AttentionBackend, AttentionFlops, AttentionShape, causal_pairs
from dma_lab.attention.heads import HeadProjections, KeyValueCache, KeyValueProjections, attend_to_cache
from dma_lab.attention.nsa_blocks import (
    BlockCompression,
    Places,
    attend_compressed,
    attend_selected,
    block_importance,
    count_blocks,
    gather_blocks,
    locate_blocks,
    select_blocks,
    selected_pairs,
)
from dma_lab.attention.nsa_sizes import NativeSparseOptions, choose_sizes
from dma_lab.attention.places import places
from dma_lab.attention.recency import RecencySlope
from dma_lab.attention.recomputed import recomputed
from dma_lab.kernels import Documents, causal_attention, document_bounds
from dma_lab.kernels.blocks.attention import choose_blocks, selected_attention, unsupported
from dma_lab.kernels.blocks.compressed import compressed_attention
from dma_lab.kernels.choice import choose_triton, note_kernel

_QUERY_CHUNK = 2048  # queries whose logits exist at a time


@dataclass
class SparseCache:
    """Each branch's keys and values; ``open`` are those that blocks not yet whole will be compressed from."""

    open: KeyValueCache = field(default_factory=KeyValueCache)
    compressed: KeyValueCache = field(default_factory=KeyValueCache)
    selected: KeyValueCache = field(default_factory=KeyValueCache)
    sliding: KeyValueCache = field(default_factory=KeyValueCache)
    position: int = 0


class NativeSparseAttention(AttentionBackend, name="nsa"):
    """NSA."""

    Options = NativeSparseOptions

    def __init__(self, shape: AttentionShape, options: NativeSparseOptions) -> None:
        sizes = choose_sizes(options, shape.max_seq_len)
        super().__init__(shape, replace(options, **sizes._asdict()))
        self.window, self.block, self.stride, self.selected_block, self.selected_blocks = sizes
        self.heads = HeadProjections(shape, qk_norm=options.qk_norm, rope_base=options.rope_base)
        """The query, and the selected branch's keys and values."""
        self.compressed = KeyValueProjections(shape, options.qk_norm)
        self.sliding = KeyValueProjections(shape, options.qk_norm)
        self.compress_k = BlockCompression(self.block, shape.head_dim)
        self.compress_v = BlockCompression(self.block, shape.head_dim)
        self.gate_proj = nn.Linear(shape.d_model, 3 * shape.n_heads, bias=False)
        self.o_proj = nn.Linear(shape.n_heads * shape.head_dim, shape.d_model, bias=False)
        self.recency = RecencySlope(shape.n_kv_heads) if options.recency else None

    def forward(self, x: Tensor, document_ids: Tensor | Documents | None = None) -> Tensor:
        self.check_input(x, document_ids)
        B, N, _ = x.shape
        q, k, v = self.heads(x)
        keys_values = self._sliding_keys_values(x)
        bias_bkn = None if self.recency is None else self.recency(places(k, document_ids))
        sliding = causal_attention(q, *keys_values, window=self.window, document_ids=document_ids, bias=bias_bkn)

        start_bn, end_bn = document_bounds(document_ids, B, N, x.device)
        first_bz, before_bn = locate_blocks(start_bn, end_bn, self.block, self.stride)
        blocks = Places(start_bn, end_bn, first_bz + self.block - 1, before_bn)
        k_blocks, v_blocks = (
            gather_blocks(raw_bknd, first_bz, self.block, self.stride) for raw_bknd in self.compressed(x)
        )
        summaries = self._compress(k_blocks, v_blocks, blocks.last_bz.clamp(max=N - 1)[:, None])
        reason = "attention.recency" if self.recency else unsupported(q, self.selected_blocks)
        if choose_triton("auto", x.device, reason):
            compressed, selected = self._attend_by_kernels(q, k, v, *summaries, blocks)
        else:
            compressed, selected = self._attend_in_chunks(q, k, v, *summaries, blocks, bias_bkn)
        return self._mix(x, compressed, selected, sliding)

    def _attend_by_kernels(
        self, q: Tensor, k: Tensor, v: Tensor, k_bkzd: Tensor, v_bkzd: Tensor, blocks: Places
    ) -> tuple[Tensor, Tensor]:
        """The compressed and the selected branch, (B, H, N, D) each, in memory linear in N."""
        compressed, lse = compressed_attention(q, k_bkzd, v_bkzd, blocks.last_bz, blocks.end_bn)
        start_bn, end_bn, before_bn = (
            place.to(torch.int32) for place in (blocks.start_bn, blocks.end_bn, blocks.before_bn)
        )
        sizes = {"block": self.block, "stride": self.stride, "selected_block": self.selected_block}
        chosen = choose_blocks(q.detach(), k_bkzd.detach(), lse, start_bn, before_bn, self.selected_blocks, **sizes)
        return compressed, selected_attention(q, k, v, chosen, start_bn, end_bn, block=self.selected_block)

    def _attend_in_chunks(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_bkzd: Tensor,
        v_bkzd: Tensor,
        blocks: Places,
        bias_bkn: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The same in plain PyTorch, by masks: the work of dense attention, a chunk of queries at a time."""
        note_kernel("block-sparse attention (PyTorch)")
        N, (start_bn, _, last_bz, before_bn) = q.shape[2], blocks
        bias_bkz = None
        if bias_bkn is not None:
            bias_bkz = bias_bkn.gather(2, last_bz.clamp(max=N - 1)[:, None].expand(-1, bias_bkn.shape[1], -1))
        first_bz = last_bz - self.block + 1
        position_n = torch.arange(N, device=q.device)
        block_bn = (position_n - start_bn) // self.selected_block
        compressed, selected = [], []
        for t0 in range(0, N, _QUERY_CHUNK):
            t1 = min(t0 + _QUERY_CHUNK, N)
            q_bhtd, start_bt1, position_t1 = q[:, :, t0:t1], start_bn[:, t0:t1, None], position_n[t0:t1, None]
            visible_btz = (first_bz[:, None] >= start_bt1) & (last_bz[:, None] <= position_t1)
            where = before_bn[:, t0:t1], block_bn[:, t0:t1], -(-N // self.selected_block), bias_bkz
            out_bhtd, selected_bktj = recomputed(self._attend_and_select, q_bhtd, k_bkzd, v_bkzd, visible_btz, *where)
            compressed.append(out_bhtd)
            visible_bts = (position_n[:t1] >= start_bt1) & (position_n[:t1] <= position_t1)
            keys = k[:, :, :t1], v[:, :, :t1], selected_bktj, block_bn[:, :t1], visible_bts
            bias_bks = None if bias_bkn is None else bias_bkn[:, :, :t1]
            selected.append(recomputed(attend_selected, q_bhtd, *keys, self.head_dim**-0.5, bias_bks))
        return torch.cat(compressed, dim=2), torch.cat(selected, dim=2)

    def _sliding_keys_values(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        k_bknd, v_bknd = self.sliding(x)
        return self.heads.rotary(self.sliding.k_norm(k_bknd), start).to(v_bknd.dtype), v_bknd

    def _compress(self, k_blocks: Tensor, v_blocks: Tensor, last: Tensor | int) -> tuple[Tensor, Tensor]:
        """Blocks of keys and of values, (B, K, Z, block, D), whose last tokens are at ``last`` -> (B, K, Z, D) each."""
        v_bkzd = self.compress_v(v_blocks)
        k_bkzd = self.compressed.k_norm(self.compress_k(k_blocks))
        return self.heads.rotary(k_bkzd, last).to(v_bkzd.dtype), v_bkzd

    def _attend_and_select(
        self,
        q_bhtd: Tensor,
        k_bkzd: Tensor,
        v_bkzd: Tensor,
        visible_btz: Tensor,
        before_bt: Tensor,
        own_bt: Tensor,
        n_selection: int,
        bias_bkz: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The compressed branch's output (B, H, T, D), and the selection that its weights make, bool (B, K, T, J)."""
        out_bhtd, weights_bktz = attend_compressed(q_bhtd, k_bkzd, v_bkzd, visible_btz, self.head_dim**-0.5, bias_bkz)
        sizes = self.block, self.stride, self.selected_block
        importance_bktj = block_importance(weights_bktz, before_bt, n_selection, *sizes)
        return out_bhtd, select_blocks(importance_bktj, own_bt, self.selected_blocks)

    def _mix(self, x: Tensor, *branches: Tensor) -> Tensor:
        """Equation 5: the branches (B, H, N, D), compressed, selected, sliding, each times its gates, summed."""
        gates = self.gate_proj(x).sigmoid().unflatten(-1, (3, self.n_heads)).permute(2, 0, 3, 1)[..., None]
        out_bhnd = sum(gate * branch for gate, branch in zip(gates, branches, strict=True))
        return self.o_proj(out_bhnd.transpose(1, 2).flatten(2))

    def new_cache(self, batch_size: int) -> SparseCache:
        return SparseCache()

    def step(self, x_t: Tensor, cache: SparseCache) -> Tensor:
        self.check_step(x_t, cache.position)
        B, t = x_t.shape[0], cache.position
        cache.position += 1
        q, k, v = self.heads(x_t, start=t)
        k, v = cache.selected.append(k, v)
        k_sliding, v_sliding = cache.sliding.append(*self._sliding_keys_values(x_t, start=t), keep=self.window)
        sliding = attend_to_cache(q, k_sliding, v_sliding, self.recency)

        raw = cache.open.append(*self.compressed(x_t))
        if raw[0].shape[2] == self.block:
            cache.compressed.append(*self._compress(raw[0][:, :, None], raw[1][:, :, None], t))
            cache.open.k_bksd, cache.open.v_bksd = (part[:, :, self.stride :].clone() for part in raw)
        own = t // self.selected_block
        selected_bk1j = q.new_ones(B, self.n_kv_heads, 1, own + 1, dtype=torch.bool)
        compressed = torch.zeros_like(sliding)
        if cache.compressed.k_bksd is not None and cache.compressed.v_bksd is not None:
            Z = cache.compressed.position
            visible_b1z = q.new_ones(B, 1, Z, dtype=torch.bool)
            last_11z = self.block - 1 + self.stride * torch.arange(Z, device=q.device)[None, None]
            bias_bkz = None if self.recency is None else self.recency(last_11z)
            before_b1, own_b1 = (torch.full((B, 1), block, device=q.device) for block in (0, own))
            compressed, selected_bk1j = self._attend_and_select(
                q, cache.compressed.k_bksd, cache.compressed.v_bksd, visible_b1z, before_b1, own_b1, own + 1, bias_bkz
            )
        # Every head reads as many blocks, its own the last of them, which ends at this token.
        block_bks1 = selected_bk1j.nonzero()[:, -1].view(B, self.n_kv_heads, -1, 1)
        token_bks = (block_bks1 * self.selected_block + torch.arange(self.selected_block, device=q.device)).flatten(2)
        unwritten = (own + 1) * self.selected_block - cache.position
        token_bks = token_bks[..., : token_bks.shape[2] - unwritten]
        index = token_bks[..., None].expand(-1, -1, -1, self.head_dim)
        selected = attend_to_cache(q, k.gather(2, index), v.gather(2, index), self.recency, place_bks=token_bks)
        return self._mix(x_t, compressed, selected, sliding)

    def flops(self, seq_len: int) -> AttentionFlops:
        """``mixing_dense`` is one dense attention of the same heads: what NSA replaces. The choice costs nothing: it is
        by the weights of the compressed branch.
        """
        Z = count_blocks(seq_len, self.block, self.stride)
        every_token = (self.compressed.k_proj, self.compressed.v_proj, self.sliding.k_proj, self.sliding.v_proj)
        per_token = sum(linear.weight.numel() for linear in (*every_token, self.gate_proj, self.o_proj))
        compressions = self.compress_k, self.compress_v
        per_block = sum(phi.hidden.weight.numel() + phi.output.weight.numel() for phi in compressions)
        # Block z is seen by the queries from its last token on.
        compressed_pairs = Z * (seq_len - self.block + 1) - self.stride * Z * (Z - 1) // 2
        flops_per_pair = 4 * self.n_heads * self.head_dim
        live_pairs = selected_pairs(seq_len, self.selected_block, self.selected_blocks)
        return AttentionFlops(
            projections=self.heads.flops(seq_len) + 2 * (seq_len * per_token + self.n_kv_heads * Z * per_block),
            selection=0,
            mixing=flops_per_pair * (compressed_pairs + live_pairs + causal_pairs(seq_len, self.window)),
            mixing_dense=flops_per_pair * causal_pairs(seq_len),
        )

    @property
    def kept_besides(self) -> int:
        """The three branches' outputs, and the blocks that are compressed, in several of which a token is."""
        blocks = 2 * self.block // self.stride * self.n_kv_heads * self.head_dim
        return 3 * self.n_heads * self.head_dim + blocks

    def cache_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        Z = count_blocks(seq_len, self.block, self.stride)
        positions = seq_len - Z * self.stride + Z + seq_len + min(seq_len, self.window)
        return 2 * self.n_kv_heads * positions * self.head_dim * dtype.itemsize
