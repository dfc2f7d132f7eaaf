"""Backward pass of block-sparse attention in Triton: a block's keys over the queries that chose it, all three at once.

dK and dV of a block are summed in the order of its queries. Where a block's run was cut by the end of a piece, the
parts of several programs are added up by a further one, in their order. dQ waits in slots, as the output did.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.blocks.arguments import block_config, launches, pieces_of
from dma_lab.kernels.blocks.lists import QueryLists
from dma_lab.kernels.blocks.tiling import backward_tile
from dma_lab.kernels.blocks.triton.merge import add_parts
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
from dma_lab.kernels.interval.triton.tiles import head_ptr, load_queries, row_ptrs, within
from dma_lab.kernels.sizes import cdiv

_SUMMED = 8  # keys that a program adds the parts of
_DELTA_QUERIES = 32


def selected_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, end_bn: Tensor, out: Tensor, lse: Tensor,
    lists: QueryLists, block: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk and dv. ``end_bn`` as in ``selected_attention``, int32, contiguous."""
    B, H, N, D = q.shape
    K = k.shape[1]
    tile = backward_tile(D, q.dtype)
    config = block_config(q, k, chosen, block, tile)
    dq, dk, dv = new_heads(q, H, D), new_heads(q, K, D), new_heads(q, K, D)
    delta = torch.empty_like(lse)
    _delta_kernel[(cdiv(N, _DELTA_QUERIES), B * H)](*heads_of(out, d_out), delta, H, N, D, config.D_PAD, _DELTA_QUERIES)
    pieces = pieces_of(chosen)
    for rows, sizes in launches(q, k, chosen, scale):
        part = torch.empty(rows, N * config.S, sizes.group_size, D, dtype=q.dtype, device=q.device)
        cut = torch.empty(2, rows, pieces, 2, config.KEYS, config.D_PAD, dtype=torch.float32, device=q.device)
        listed = *lists, chosen, end_bn
        _backward_kernel[(pieces, rows)](
            *heads_of(q, k, v, d_out, dk, dv), lse, delta, *listed, part, *cut, sizes, config, **tile.launch
        )
        _add_cut_kernel[(pieces, rows, config.KEYS // _SUMMED)](
            *heads_of(dk, dv), *listed, *cut, sizes, config, _SUMMED
        )
        add_parts(part, chosen, dq, sizes)
    return dq, dk, dv


@triton.jit
def _delta_kernel(out, d_out, delta_ptr, H, N, D: tl.constexpr, D_PAD: tl.constexpr, QUERIES: tl.constexpr):
    """sum(d_out * out) of every query."""
    row = tl.program_id(1).to(tl.int64)
    t_q = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    head_q = tl.full((QUERIES,), 0, tl.int64) + row % H
    out_qd = load_queries(out, row // H, head_q, t_q, t_q < N, D, D_PAD).to(tl.float32)
    do_qd = load_queries(d_out, row // H, head_q, t_q, t_q < N, D, D_PAD).to(tl.float32)
    tl.store(delta_ptr + row * N + t_q, tl.sum(out_qd * do_qd, 1), mask=t_q < N)


@triton.jit
def _backward_kernel(
    q, k, v, d_out, dk, dv, lse_ptr, delta_ptr, place_ptr, length_ptr, chosen_ptr, end_ptr,
    part_ptr, cut_dk_ptr, cut_dv_ptr, sizes, C: tl.constexpr,
):  # fmt: skip
    KEYS: tl.constexpr = C.KEYS
    D_PAD: tl.constexpr = C.D_PAD
    b, kv_head, places, chosen, begin, end = piece_of_program(place_ptr, length_ptr, chosen_ptr, sizes, C)
    block_p = blocks_of_piece(places, chosen, begin, end, C)
    slot_s = tl.arange(0, C.KEYS)
    at = begin
    while at < end:
        first = block_at(places, chosen, at)
        run_end = at + tl.sum((block_p == first).to(tl.int32), 0)
        keys = (load_keys(k, b, kv_head, first, sizes, C), load_keys(v, b, kv_head, first, sizes, C))
        dk_sd = tl.zeros((KEYS, D_PAD), tl.float32)
        dv_sd = tl.zeros((KEYS, D_PAD), tl.float32)
        for subgroup in range(C.SUBGROUPS):
            dk_sd, dv_sd = _add_run(
                dk_sd, dv_sd, q, d_out, lse_ptr, delta_ptr, b, kv_head, subgroup * C.GROUP, places, at, run_end,
                first, keys, part_ptr, sizes, C,
            )  # fmt: skip
        dk_sd *= sizes.scale
        opens, closes = _run_is_whole(places, chosen, at, run_end, first, begin, end, length_ptr, sizes, C)
        if opens & closes:
            written_s = _keys_of_block(end_ptr, b, first, slot_s, sizes, C)
            dk_rows = row_ptrs(head_ptr(dk, b, kv_head), first + slot_s, dk.n, C.D_PAD)
            dv_rows = row_ptrs(head_ptr(dv, b, kv_head), first + slot_s, dv.n, C.D_PAD)
            tl.store(dk_rows, dk_sd.to(dk.ptr.dtype.element_ty), mask=within(written_s, C.D, C.D_PAD))
            tl.store(dv_rows, dv_sd.to(dv.ptr.dtype.element_ty), mask=within(written_s, C.D, C.D_PAD))
        else:
            cut = _cut_rows(tl.program_id(0), opens, slot_s, C)
            tl.store(row_ptrs(cut_dk_ptr, cut, C.D_PAD, C.D_PAD), dk_sd)
            tl.store(row_ptrs(cut_dv_ptr, cut, C.D_PAD, C.D_PAD), dv_sd)
        at = run_end


@triton.jit
def _run_is_whole(places, chosen, at, run_end, first, begin, end, length_ptr, sizes, C: tl.constexpr):
    """Whether a block's queries begin with this run, and whether they end with it."""
    before = tl.load(places + begin - 1, mask=begin > 0, other=0)
    before = tl.load(chosen + before, mask=begin > 0, other=-1)
    length = tl.load(length_ptr + sizes.first_row + tl.program_id(1))
    after = tl.load(places + end, mask=end < length, other=0)
    after = tl.load(chosen + after, mask=end < length, other=-1)
    return (at > begin) | (before != first), (run_end < end) | (after != first)


@triton.jit
def _keys_of_block(end_ptr, b, first, slot_s, sizes, C: tl.constexpr):
    """Which keys of a tile are the block's; its document may end within it."""
    document_end = tl.load(end_ptr + b * sizes.N + first)
    return (slot_s < C.BLOCK) & (first + slot_s < document_end)


@triton.jit
def _cut_rows(piece, opens, slot_s, C: tl.constexpr):
    """Where a piece keeps the keys' gradients of a run that is not whole: its last one's second."""
    cut = (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + piece) * 2 + opens.to(tl.int64)
    return cut * C.KEYS + slot_s


@triton.jit
def _add_run(
    dk_sd, dv_sd, q, d_out, lse_ptr, delta_ptr, b, kv_head, head0, places, at, run_end, first, keys, part_ptr, sizes,
    C: tl.constexpr,
):  # fmt: skip
    """What the run's queries add to dK and dV; keys are the rows here. Their dQ goes to its slots."""
    k_sd, v_sd = keys
    slot_s = tl.arange(0, C.KEYS)
    head_in_group_a = head0 + tl.arange(0, C.GROUP * C.QUERIES) // C.QUERIES
    head_a = kv_head * sizes.group_size + head_in_group_a
    statistics_a = (b * sizes.K * sizes.group_size + head_a) * sizes.N
    scale_log2 = sizes.scale * LOG2_E
    place_a, inside_a = load_places(places, at, run_end, sizes, C)
    for tile in range(at, run_end, C.QUERIES):
        t_a = place_a // C.S
        q_ad = load_queries(q, b, head_a, t_a, inside_a, C.D, C.D_PAD)
        do_ad = load_queries(d_out, b, head_a, t_a, inside_a, C.D, C.D_PAD)
        lse_a = tl.load(lse_ptr + statistics_a + t_a, mask=inside_a, other=float("inf"))
        delta_a = tl.load(delta_ptr + statistics_a + t_a, mask=inside_a, other=0.0)
        next_place_a, next_inside_a = load_places(places, tile + C.QUERIES, run_end, sizes, C)
        logits_sa = tl.dot(k_sd, tl.trans(q_ad), input_precision=C.PRECISION) * scale_log2
        p_sa = tl.exp2(logits_sa - lse_a[None, :])
        if C.KEYS != C.BLOCK:
            p_sa = tl.where((slot_s < C.BLOCK)[:, None], p_sa, 0.0)
        if tile < at + C.BLOCK:
            p_sa = tl.where(first + slot_s[:, None] <= t_a[None, :], p_sa, 0.0)
        dv_sd = tl.dot(p_sa.to(do_ad.dtype), do_ad, dv_sd, input_precision=C.PRECISION)
        dp_sa = tl.dot(v_sd, tl.trans(do_ad), input_precision=C.PRECISION)
        ds_sa = (p_sa * (dp_sa - delta_a[None, :])).to(q_ad.dtype)
        dk_sd = tl.dot(ds_sa, q_ad, dk_sd, input_precision=C.PRECISION)
        dq_ad = tl.dot(tl.trans(ds_sa), k_sd, input_precision=C.PRECISION)
        row_a = part_rows(tl.program_id(1).to(tl.int64), place_a, head_in_group_a, sizes, C)
        tl.store(
            row_ptrs(part_ptr, row_a, C.D, C.D_PAD), dq_ad.to(part_ptr.dtype.element_ty),
            mask=within(inside_a, C.D, C.D_PAD),
        )  # fmt: skip
        place_a, inside_a = next_place_a, next_inside_a
    return dk_sd, dv_sd


@triton.jit
def _add_cut_kernel(
    dk, dv, place_ptr, length_ptr, chosen_ptr, end_ptr, cut_dk_ptr, cut_dv_ptr, sizes, C: tl.constexpr,
    SUMMED: tl.constexpr,
):  # fmt: skip
    """Some keys' gradients of the block whose run is cut by the end of this piece and began in it, if there is one."""
    b, kv_head, places, chosen, begin, end = piece_of_program(place_ptr, length_ptr, chosen_ptr, sizes, C)
    length = tl.load(length_ptr + sizes.first_row + tl.program_id(1))
    piece = tl.program_id(0)
    if end < length:
        first = block_at(places, chosen, end)
        began_before = begin > 0
        if began_before:
            began_before = block_at(places, chosen, begin - 1) == first
        if (block_at(places, chosen, end - 1) == first) & (began_before == 0):
            slot_s = tl.program_id(2) * SUMMED + tl.arange(0, SUMMED)
            cut = _cut_rows(piece, piece >= 0, slot_s, C)
            dk_sd = tl.load(row_ptrs(cut_dk_ptr, cut, C.D_PAD, C.D_PAD))
            dv_sd = tl.load(row_ptrs(cut_dv_ptr, cut, C.D_PAD, C.D_PAD))
            goes_on = True
            while goes_on:
                piece += 1
                cut = _cut_rows(piece, piece < 0, slot_s, C)
                dk_sd += tl.load(row_ptrs(cut_dk_ptr, cut, C.D_PAD, C.D_PAD))
                dv_sd += tl.load(row_ptrs(cut_dv_ptr, cut, C.D_PAD, C.D_PAD))
                after = (piece + 1) * C.PIECE
                goes_on = after < length
                if goes_on:
                    goes_on = block_at(places, chosen, after) == first
            written_s = _keys_of_block(end_ptr, b, first, slot_s, sizes, C)
            dk_rows = row_ptrs(head_ptr(dk, b, kv_head), first + slot_s, dk.n, C.D_PAD)
            dv_rows = row_ptrs(head_ptr(dv, b, kv_head), first + slot_s, dv.n, C.D_PAD)
            tl.store(dk_rows, dk_sd.to(dk.ptr.dtype.element_ty), mask=within(written_s, C.D, C.D_PAD))
            tl.store(dv_rows, dv_sd.to(dv.ptr.dtype.element_ty), mask=within(written_s, C.D, C.D_PAD))
