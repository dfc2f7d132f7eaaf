"""Mixture of Block Attention (MoBA; Lu et al., arXiv 2502.13189): every query reads the blocks that suit it best.

A block's score is the query's product with the mean of its keys, rotated as they are (equation 6): RoPE is linear, so
scores depend on distances alone. A query reads its own block up to itself, always, and of the whole blocks before it
those with the highest scores, ``selected_blocks`` in all (equations 4 and 5). As in the authors' code every query head
chooses for itself, in float32. The choice has no gradient, and there are no weights beside MHA's.
"""

from dataclasses import dataclass, field, replace

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
from dma_lab.attention.nsa_blocks import attend_selected, gather_blocks, locate_blocks, selected_pairs
from dma_lab.attention.recomputed import recomputed
from dma_lab.attention.rope import RopeBase
from dma_lab.kernels import Documents, document_bounds
from dma_lab.kernels.blocks.attention import selected_attention, unsupported
from dma_lab.kernels.choice import choose_triton, note_kernel
from dma_lab.messages import warn_once
from dma_lab.settings import Count

_QUERY_CHUNK = 2048  # queries whose logits exist at a time
_KERNEL_BLOCK = 64  # keys that the kernels hold at a time; longer blocks are several of theirs


@dataclass(frozen=True)
class MixtureOfBlocksOptions(AttentionOptions):
    block: Count | None = None
    """Keys of a block; unless given a sixteenth of ``max_seq_len``, the paper's ratio, and its 512 at most, since what
    is kept of a query's choice grows with the block."""
    selected_blocks: Count = 3
    """Blocks that a query reads, its own included."""
    qk_norm: bool = True
    """RMSNorm over each head's query and key."""
    rope_base: RopeBase = 10_000.0


@dataclass
class BlockCache:
    """Keys and values of every position, and the mean key of every whole block."""

    read: KeyValueCache = field(default_factory=KeyValueCache)
    mean_bkzd: Tensor | None = None
    position: int = 0


class MixtureOfBlockAttention(AttentionBackend, name="moba"):
    """MoBA; a packed document has the blocks that it has alone."""

    Options = MixtureOfBlocksOptions

    def __init__(self, shape: AttentionShape, options: MixtureOfBlocksOptions) -> None:
        block = max(1, min(512, shape.max_seq_len // 16)) if options.block is None else options.block
        super().__init__(shape, replace(options, block=block))
        self.block, self.selected_blocks = block, options.selected_blocks
        if block * options.selected_blocks >= shape.max_seq_len:
            warn_once(
                f"attention.selected_blocks={options.selected_blocks} of {block} tokens reach the whole context of "
                f"{shape.max_seq_len} tokens: MoBA is then MHA."
            )
        self.heads = HeadProjections(shape, qk_norm=options.qk_norm, rope_base=options.rope_base)
        self.o_proj = nn.Linear(shape.n_heads * shape.head_dim, shape.d_model, bias=False)

    def forward(self, x: Tensor, document_ids: Tensor | Documents | None = None) -> Tensor:
        self.check_input(x, document_ids)
        B, N, _ = x.shape
        q, k, v = self.heads(x)
        start_bn, end_bn = document_bounds(document_ids, B, N, x.device)
        first_bz, before_bn = locate_blocks(start_bn, end_bn, self.block, self.block)
        mean_bkzd = gather_blocks(k.detach(), first_bz, self.block, self.block).mean(3)
        own_bn = (torch.arange(N, device=x.device) - start_bn) // self.block
        chunks = (slice(t0, t0 + _QUERY_CHUNK) for t0 in range(0, N, _QUERY_CHUNK))
        chosen = [self.choose(q[:, :, at].detach(), mean_bkzd, before_bn[:, at], own_bn[:, at]) for at in chunks]
        chosen_bhns = torch.cat(chosen, dim=2)
        # A choice for every query head: each has its keys and values to itself.
        k, v = (heads.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1) for heads in (k, v))
        attend = self._attend_by_kernels if self._by_kernels(q) else self._attend_in_chunks
        out_bhnd = attend(q, k, v, chosen_bhns, start_bn, end_bn, own_bn)
        return self.o_proj(out_bhnd.transpose(1, 2).flatten(2))

    def choose(self, q_bhtd: Tensor, mean_bkzd: Tensor, before_bt: Tensor, own_bt: Tensor) -> Tensor:
        """The blocks that each query reads, counted in its document: int64 (B, H, T, S), its own last, -1 where it
        reads fewer; of equal scores the more recent block's counts.

        Args:
            mean_bkzd: mean keys of the whole blocks of all documents of the row.
            before_bt: int64 (B, T), how many of these the documents before each query's have.
            own_bt: int64 (B, T), the block that the query lies in.
        """
        B, H, T, D = q_bhtd.shape
        K, Z = mean_bkzd.shape[1:3]
        dtype = torch.promote_types(q_bhtd.dtype, torch.float32)
        with torch.autocast(q_bhtd.device.type, enabled=False):
            score = q_bhtd.to(dtype).reshape(B, K, H // K * T, D) @ mean_bkzd.to(dtype).mT
        z = torch.arange(Z, device=q_bhtd.device)
        before, own = before_bt[:, None, :, None], own_bt[:, None, :, None]
        visible = ((z >= before) & (z < before + own)).expand(B, H, T, Z)
        ranked = score.view(B, H, T, Z).masked_fill(~visible, -torch.inf).argsort(dim=-1, stable=True)
        best = ranked[..., Z - min(Z, self.selected_blocks - 1) :]
        others = torch.where(visible.gather(-1, best), best - before, -1)
        return torch.cat((others, own.expand(B, H, T, 1)), dim=-1)

    def _by_kernels(self, q: Tensor) -> bool:
        size = self._kernel_block()
        reason = unsupported(q, self.selected_blocks * self.block // size)
        if size < min(16, self.block):
            reason = f"attention.block={self.block} is no multiple of any size from 16 to {_KERNEL_BLOCK}"
        return choose_triton("auto", q.device, reason)

    def _kernel_block(self) -> int:
        return max(size for size in range(1, _KERNEL_BLOCK + 1) if self.block % size == 0)

    def _attend_by_kernels(
        self, q: Tensor, k: Tensor, v: Tensor, chosen_bhns: Tensor, start_bn: Tensor, end_bn: Tensor, own_bn: Tensor
    ) -> Tensor:
        """(B, H, N, D): a block is as many of the kernels' as it takes, and memory that times N."""
        N, size = q.shape[2], self._kernel_block()
        begin = start_bn[:, None, :, None, None] + self.block * chosen_bhns[..., None]
        begin = begin + torch.arange(0, self.block, size, device=q.device)
        read = (chosen_bhns >= 0)[..., None] & (begin <= torch.arange(N, device=q.device)[:, None, None])
        pieces = torch.where(read, begin, -1).flatten(3).to(torch.int32)
        bounds = start_bn.to(torch.int32), end_bn.to(torch.int32)
        return selected_attention(q, k, v, pieces, *bounds, block=size)

    def _attend_in_chunks(
        self, q: Tensor, k: Tensor, v: Tensor, chosen_bhns: Tensor, start_bn: Tensor, end_bn: Tensor, own_bn: Tensor
    ) -> Tensor:
        """The same in plain PyTorch, by masks: the work of dense attention, a chunk of queries at a time."""
        note_kernel("block-sparse attention (PyTorch)")
        N, outs = q.shape[2], []
        for t0 in range(0, N, _QUERY_CHUNK):
            t1 = min(t0 + _QUERY_CHUNK, N)
            keys = k[:, :, :t1], v[:, :, :t1], chosen_bhns[:, :, t0:t1], start_bn[:, t0:t1], own_bn[:, :t1]
            outs.append(recomputed(self._attend_chunk, q[:, :, t0:t1], *keys))
        return torch.cat(outs, dim=2)

    def _attend_chunk(
        self, q: Tensor, k: Tensor, v: Tensor, chosen_bhts: Tensor, start_bt: Tensor, block_bs: Tensor
    ) -> Tensor:
        """Of the last T of S positions, (B, H, T, D); masks are made here, lest all chunks' be kept."""
        (B, H, T, _), S = q.shape, k.shape[2]
        J = -(-S // self.block)
        selected_bhtj = chosen_bhts.new_zeros(B, H, T, J + 1, dtype=torch.bool)
        selected_bhtj = selected_bhtj.scatter(-1, torch.where(chosen_bhts < 0, J, chosen_bhts), True)[..., :J]
        position_s = torch.arange(S, device=q.device)
        visible_bts = (position_s >= start_bt[..., None]) & (position_s <= position_s[S - T :, None])
        return attend_selected(q, k, v, selected_bhtj, block_bs, visible_bts, self.head_dim**-0.5)

    def new_cache(self, batch_size: int) -> BlockCache:
        return BlockCache()

    def step(self, x_t: Tensor, cache: BlockCache) -> Tensor:
        self.check_step(x_t, cache.position)
        B, t = x_t.shape[0], cache.position
        cache.position += 1
        q, k, v = self.heads(x_t, start=t)
        k, v = cache.read.append(k, v)
        own = t // self.block
        mean_bkzd = k[:, :, :0] if cache.mean_bkzd is None else cache.mean_bkzd
        before_b1, own_b1 = (torch.full((B, 1), block, device=q.device) for block in (0, own))
        # Every head reads as many blocks, all of them whole but its own, which ends at this token.
        chosen_bhs1 = self.choose(q, mean_bkzd, before_b1, own_b1)[:, :, 0, :, None]
        token_bhs = (chosen_bhs1 * self.block + torch.arange(self.block, device=q.device)).flatten(2)
        unwritten = (own + 1) * self.block - cache.position
        token_bkgs = token_bhs[..., : token_bhs.shape[2] - unwritten].unflatten(1, (self.n_kv_heads, -1))
        index = token_bkgs[..., None].expand(-1, -1, -1, -1, self.head_dim)
        k_read, v_read = (
            held[:, :, None].expand(-1, -1, index.shape[2], -1, -1).gather(3, index).flatten(1, 2) for held in (k, v)
        )
        if unwritten == 0:
            newest = k[:, :, -self.block :].mean(2, keepdim=True)
            cache.mean_bkzd = torch.cat((mean_bkzd, newest), dim=2)
        out_bhnd = F.scaled_dot_product_attention(q, k_read, v_read)
        return self.o_proj(out_bhnd.transpose(1, 2).flatten(2))

    def flops(self, seq_len: int) -> AttentionFlops:
        whole, rest = divmod(seq_len, self.block)
        block_pairs = self.block * whole * (whole - 1) // 2 + rest * whole  # (query, whole block before its own)
        flops_per_pair = 4 * self.n_heads * self.head_dim
        selection = 2 * self.n_heads * self.head_dim * block_pairs
        return AttentionFlops(
            projections=self.heads.flops(seq_len) + 2 * seq_len * self.o_proj.weight.numel(),
            selection=selection,
            mixing=flops_per_pair * selected_pairs(seq_len, self.block, self.selected_blocks),
            mixing_dense=flops_per_pair * causal_pairs(seq_len),
            selection_saved=2 * selection,
        )

    def cache_bytes(self, seq_len: int, dtype: torch.dtype) -> int:
        return self.n_kv_heads * (2 * seq_len + seq_len // self.block) * self.head_dim * dtype.itemsize
