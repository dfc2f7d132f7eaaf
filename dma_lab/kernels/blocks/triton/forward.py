"""Forward pass of block-sparse attention in Triton: a block's keys over the queries that chose it.

A few query heads share a key/value head, so a tile of one query's would leave matrix units idle, and consecutive
queries need not choose alike. By blocks, every tile is full, whatever was chosen, and the keys are read once per piece.
What a query gets from a block waits in the slot in which it chose it, to be merged (``merge.py``).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.blocks.arguments import block_config, launches, pieces_of
from dma_lab.kernels.blocks.lists import QueryLists
from dma_lab.kernels.blocks.tiling import forward_tile
from dma_lab.kernels.blocks.triton.merge import merge_parts
from dma_lab.kernels.blocks.triton.runs import (
    block_at,
    blocks_of_piece,
    load_keys,
    load_places,
    part_rows,
    piece_of_program,
)
from dma_lab.kernels.interval.arguments import heads_of, new_heads
from dma_lab.kernels.interval.compaction import LOG2_E
from dma_lab.kernels.interval.triton.tiles import load_queries, row_ptrs, within


def selected_forward(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, lists: QueryLists, block: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (B, H, N, D) and the base-2 logarithm of each query's softmax sum, float32 (B, H, N)."""
    B, H, N, D = q.shape
    tile = forward_tile(D, q.dtype)
    config = block_config(q, k, chosen, block, tile)
    out, lse = new_heads(q, H, D), torch.empty(B, H, N, dtype=torch.float32, device=q.device)
    for rows, sizes in launches(q, k, chosen, scale):
        part_index = rows, N * config.S, sizes.group_size
        part = torch.empty(*part_index, D, dtype=q.dtype, device=q.device)
        part_lse = torch.empty(part_index, dtype=torch.float32, device=q.device)
        _forward_kernel[(pieces_of(chosen), rows)](
            *heads_of(q, k, v), *lists, chosen, part, part_lse, sizes, config, **tile.launch
        )
        merge_parts(part, part_lse, chosen, out, lse, sizes)
    return out, lse


@triton.jit
def _forward_kernel(
    q, k, v, place_ptr, length_ptr, chosen_ptr, part_ptr, part_lse_ptr, sizes, C: tl.constexpr
):  # fmt: skip
    b, kv_head, places, chosen, begin, end = piece_of_program(place_ptr, length_ptr, chosen_ptr, sizes, C)
    block_p = blocks_of_piece(places, chosen, begin, end, C)
    at = begin
    while at < end:
        first = block_at(places, chosen, at)
        run_end = at + tl.sum((block_p == first).to(tl.int32), 0)
        keys = (load_keys(k, b, kv_head, first, sizes, C), load_keys(v, b, kv_head, first, sizes, C))
        for subgroup in range(C.SUBGROUPS):
            _attend_run(q, b, kv_head, subgroup * C.GROUP, places, at, run_end, first, keys,
                        part_ptr, part_lse_ptr, sizes, C)  # fmt: skip
        at = run_end


@triton.jit
def _attend_run(
    q, b, kv_head, head0, places, at, run_end, first, keys, part_ptr, part_lse_ptr, sizes, C: tl.constexpr
):  # fmt: skip
    k_sd, v_sd = keys
    slot_s = tl.arange(0, C.KEYS)
    head_in_group_a = head0 + tl.arange(0, C.GROUP * C.QUERIES) // C.QUERIES
    head_a = kv_head * sizes.group_size + head_in_group_a
    scale_log2 = sizes.scale * LOG2_E
    place_a, inside_a = load_places(places, at, run_end, sizes, C)
    for tile in range(at, run_end, C.QUERIES):
        t_a = place_a // C.S
        q_ad = load_queries(q, b, head_a, t_a, inside_a, C.D, C.D_PAD)
        next_place_a, next_inside_a = load_places(places, tile + C.QUERIES, run_end, sizes, C)
        logits_as = tl.dot(q_ad, tl.trans(k_sd), input_precision=C.PRECISION) * scale_log2
        if C.KEYS != C.BLOCK:
            logits_as = tl.where((slot_s < C.BLOCK)[None, :], logits_as, float("-inf"))
        if tile < at + C.BLOCK:  # queries come in order: only a run's first can lie in the block itself
            logits_as = tl.where(first + slot_s[None, :] <= t_a[:, None], logits_as, float("-inf"))
        max_a = tl.max(logits_as, 1)
        weights_as = tl.exp2(logits_as - max_a[:, None])
        sum_a = tl.sum(weights_as, 1)
        out_ad = tl.dot(weights_as.to(v_sd.dtype), v_sd, input_precision=C.PRECISION)
        out_ad *= (1.0 / sum_a)[:, None]
        row_a = part_rows(tl.program_id(1).to(tl.int64), place_a, head_in_group_a, sizes, C)
        tl.store(
            row_ptrs(part_ptr, row_a, C.D, C.D_PAD), out_ad.to(part_ptr.dtype.element_ty),
            mask=within(inside_a, C.D, C.D_PAD),
        )  # fmt: skip
        tl.store(part_lse_ptr + row_a, max_a + tl.log2(sum_a), mask=inside_a)
        place_a, inside_a = next_place_a, next_inside_a
