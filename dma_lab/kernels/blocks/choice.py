"""Which blocks a query reads (NSA, arXiv 2502.11089, section 3.3.2), in Triton: importance, and the best of it.

The softmax weights of the compressed branch are made again from its keys and the logarithms of its sums, and summed
into selection blocks where they are made; one number per block is kept of them, for a chunk of queries at a time.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.blocks.tiling import importance_tile
from dma_lab.kernels.interval.arguments import heads_of
from dma_lab.kernels.interval.compaction import LOG2_E
from dma_lab.kernels.interval.tiling import heads_together, padded
from dma_lab.kernels.interval.triton.tiles import head_ptr, load_queries, load_rows
from dma_lab.kernels.sizes import cdiv, next_power_of_2

_IMPORTANCE_BYTES = 2**26  # of a chunk
_SORTED = 4096  # importances that a program has in registers, as long as a query's fit


class _Sizes(NamedTuple):
    """Of the problem, known at launch."""

    K: int
    group_size: int
    N: int
    J: int
    """Selection blocks that a document can have."""
    first: int
    """Query that the chunk begins with."""
    chunk: int
    """Its queries."""
    scale: float


class _Config(NamedTuple):
    """What the kernel of importance is compiled for."""

    D: int
    D_PAD: int
    GROUP: int
    SUBGROUPS: int
    QUERIES: int
    KEYS: int
    """Selection blocks at a time."""
    BLOCK: int
    STRIDE: int
    SELECTED: int
    PRECISION: str


@torch.library.custom_op("dma_lab::choose_blocks", mutates_args=())
def choose_blocks_triton(
    q: Tensor,
    k_bkzd: Tensor,
    lse: Tensor,
    start_bn: Tensor,
    before_bn: Tensor,
    count: int,
    block: int,
    stride: int,
    selected_block: int,
    scale: float,
) -> Tensor:
    """Arguments as in ``choose_blocks``; ``start_bn`` and ``before_bn`` contiguous."""
    (B, H, N, D), K = q.shape, k_bkzd.shape[1]
    tile = importance_tile(D, q.dtype)
    group = heads_together(H // K)
    config = _Config(
        D=D,
        D_PAD=padded(D),
        GROUP=group,
        SUBGROUPS=H // K // group,
        QUERIES=tile.rows // group,
        KEYS=tile.keys,
        BLOCK=block,
        STRIDE=stride,
        SELECTED=selected_block,
        PRECISION="ieee" if q.element_size() == 4 else "tf32",
    )
    J = cdiv(N, selected_block)
    J_PAD = next_power_of_2(J)
    queries = max(1, _SORTED // J_PAD)
    chunk = max(config.QUERIES, _IMPORTANCE_BYTES // (4 * B * K * J) // config.QUERIES * config.QUERIES)
    chunk = min(chunk, N)
    chosen = torch.empty(B, K, N, count, dtype=torch.int32, device=q.device)
    importance = torch.empty(B * K, chunk, J, dtype=torch.float32, device=q.device)
    q = q if q.stride(-1) == 1 else q.contiguous()
    with torch.cuda.device_of(q):
        for first in range(0, N, chunk):
            sizes = _Sizes(K, H // K, N, J, first, min(chunk, N - first), scale)
            _importance_kernel[(cdiv(sizes.chunk, config.QUERIES), B * K)](
                *heads_of(q, k_bkzd.contiguous()), lse, start_bn, before_bn, importance, sizes, config, **tile.launch
            )
            _best_kernel[(cdiv(sizes.chunk, queries), B * K)](
                importance, start_bn, chosen, sizes, selected_block, count, queries, J_PAD
            )
    return chosen


@choose_blocks_triton.register_fake
def _(
    q: Tensor,
    k_bkzd: Tensor,
    lse: Tensor,
    start_bn: Tensor,
    before_bn: Tensor,
    count: int,
    block: int,
    stride: int,
    selected_block: int,
    scale: float,
) -> Tensor:
    return q.new_empty(q.shape[0], k_bkzd.shape[1], q.shape[2], count, dtype=torch.int32)


@triton.jit
def _importance_kernel(q, k, lse_ptr, start_ptr, before_ptr, importance_ptr, sizes, C: tl.constexpr):
    """Importance of every selection block of its document to each query, up to its own."""
    ROWS: tl.constexpr = C.GROUP * C.QUERIES
    # The last queries first: they have most blocks.
    tile = (tl.num_programs(0) - 1 - tl.program_id(0)) * C.QUERIES
    row = tl.program_id(1).to(tl.int64)
    b, kv_head = row // sizes.K, row % sizes.K
    end = tl.minimum(sizes.first + sizes.chunk, sizes.N)
    row_a = tl.arange(0, ROWS)
    in_chunk_q = tile + tl.arange(0, C.QUERIES)
    t_q, t_a = sizes.first + in_chunk_q, sizes.first + tile + row_a % C.QUERIES
    inside_a = t_a < end
    start_q = tl.load(start_ptr + b * sizes.N + t_q, mask=t_q < end, other=sizes.N)
    start_a = tl.load(start_ptr + b * sizes.N + t_a, mask=inside_a, other=sizes.N)
    before_q = tl.load(before_ptr + b * sizes.N + t_q, mask=t_q < end, other=0)
    tokens_a = t_a - start_a + 1
    seen_a = tl.where(tokens_a >= C.BLOCK, (tokens_a - C.BLOCK) // C.STRIDE + 1, 0)
    importance_q = importance_ptr + (row * sizes.chunk + in_chunk_q) * sizes.J
    for subgroup in range(C.SUBGROUPS):
        head_a = kv_head * sizes.group_size + subgroup * C.GROUP + row_a // C.QUERIES
        q_ad = load_queries(q, b, head_a, t_a, inside_a, C.D, C.D_PAD)
        statistics_a = (b * sizes.K * sizes.group_size + head_a) * sizes.N + t_a
        lse_a = tl.load(lse_ptr + statistics_a, mask=inside_a, other=float("inf"))
        document = tl.min(start_q, 0)
        while document < sizes.N:  # mostly one document per tile
            of_document_q = start_q == document
            before = tl.max(tl.where(of_document_q, before_q, 0), 0)
            seen_of_document_a = tl.where(start_a == document, seen_a, 0)
            last = tl.max(tl.where(of_document_q, (t_q - document) // C.SELECTED, 0), 0)
            for j0 in range(0, last + 1, C.KEYS):
                _add_importance(
                    q_ad, head_ptr(k, b, kv_head) + before.to(tl.int64) * k.n, k.n, lse_a, seen_of_document_a, j0,
                    importance_q, of_document_q, subgroup, sizes, C,
                )  # fmt: skip
            document = tl.min(tl.where(start_q > document, start_q, sizes.N), 0)


@triton.jit
def _add_importance(
    q_ad, k_document, k_n, lse_a, seen_a, j0, importance_q, written_q, subgroup, sizes, C: tl.constexpr
):  # fmt: skip
    """Selection blocks [j0, j0 + KEYS): each compressed block's weight counts once for every stride that they share.

    A tile of logits has the compressed blocks that lie alike in their selection blocks: z = j * R + offset.
    """
    ROWS: tl.constexpr = C.GROUP * C.QUERIES
    KEYS: tl.constexpr = C.KEYS
    GROUP: tl.constexpr = C.GROUP
    QUERIES: tl.constexpr = C.QUERIES
    LENGTH: tl.constexpr = C.BLOCK // C.STRIDE
    R: tl.constexpr = C.SELECTED // C.STRIDE
    j_s = j0 + tl.arange(0, KEYS)
    most_seen = tl.max(seen_a, 0)
    weight_as = tl.zeros((ROWS, KEYS), tl.float32)
    for offset in range(1 - LENGTH, R):
        z_s = j_s * R + offset
        k_sd = load_rows(k_document, z_s, k_n, (z_s >= 0) & (z_s < most_seen), C.D, C.D_PAD, True, True)
        logits_as = tl.dot(q_ad, tl.trans(k_sd), input_precision=C.PRECISION) * (sizes.scale * LOG2_E)
        visible_as = (z_s >= 0)[None, :] & (z_s[None, :] < seen_a[:, None])
        shared = tl.minimum(offset + LENGTH, R) - tl.maximum(offset, 0)
        weight_as += tl.where(visible_as, tl.exp2(logits_as - lse_a[:, None]), 0.0) * shared
    importance_qs = tl.sum(tl.reshape(weight_as, (GROUP, QUERIES, KEYS)), 0)
    pointers = importance_q[:, None] + j_s[None, :]
    written = written_q[:, None] & (j_s < sizes.J)[None, :]
    if subgroup > 0:
        importance_qs += tl.load(pointers, mask=written, other=0.0)
    tl.store(pointers, importance_qs, mask=written)


@triton.jit
def _best_kernel(
    importance_ptr, start_ptr, chosen_ptr, sizes,
    SELECTED: tl.constexpr, S: tl.constexpr, QUERIES: tl.constexpr, J_PAD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    in_chunk_q = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    t_q = sizes.first + in_chunk_q
    inside_q = in_chunk_q < sizes.chunk
    start_q = tl.load(start_ptr + row // sizes.K * sizes.N + t_q, mask=inside_q, other=0)
    own = ((t_q - start_q) // SELECTED)[:, None]
    j = tl.arange(0, J_PAD)[None, :]
    importance = importance_ptr + (row * sizes.chunk + in_chunk_q)[:, None] * sizes.J + j
    rank_qj = tl.load(importance, mask=inside_q[:, None] & (j <= own), other=-1.0)
    rank_qj = tl.where(rank_qj == rank_qj, rank_qj, 0.0)  # what is not a number is of no importance
    always = (j == 0) | (j >= own - 1)
    rank_qj = tl.where(j <= own, tl.where(always, float("inf"), rank_qj), -1.0)
    for s in range(S):
        best_q = tl.max(rank_qj, 1)
        best_j_q = tl.max(tl.where(rank_qj == best_q[:, None], j, -1), 1)
        rank_qj = tl.where(j == best_j_q[:, None], -1.0, rank_qj)
        begin_q = tl.where(best_q >= 0, start_q + best_j_q * SELECTED, -1)
        tl.store(chosen_ptr + (row * sizes.N + t_q) * S + s, begin_q, mask=inside_q)
