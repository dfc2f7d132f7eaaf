"""dQ of interval attention in Triton: a block of queries over its list of live keys, as in the forward pass.

Every result is written once, by one program, so the same input gives the same bits.
"""

import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.interval.arguments import heads_of, new_heads, query_config, query_grid, sizes_of
from dma_lab.kernels.interval.compaction import LOG2_E
from dma_lab.kernels.interval.key_lists import KeyLists
from dma_lab.kernels.interval.tiling import Tile
from dma_lab.kernels.interval.triton.tiles import (
    head_ptr,
    heads_of_program,
    load_queries,
    load_rows,
    logits_of_tile,
    query_ptrs,
    within,
)


def interval_backward_dq(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    delta: Tensor,
    lists: KeyLists,
    block: int,
    scale: float,
    tile: Tile,
) -> Tensor:
    """dq. Also completes ``delta`` in place: sum(d_out * out) wherever ``delta_of_short_lists`` left it unwritten, of
    float32 inputs everywhere.
    """
    dq = new_heads(q, q.shape[1], q.shape[-1])
    config = query_config(q, k, v, block, tile)
    _dq_kernel[query_grid(q, config)](
        *heads_of(q, k, v, out, d_out, dq),
        lse,
        delta,
        lists.blocks,
        sizes_of(q, k, lists, scale),
        config,
        **tile.launch,
    )
    return dq


@triton.jit
def _dq_kernel(q, k, v, out, d_out, dq, lse_ptr, delta_ptr, lists, sizes, C: tl.constexpr):
    ROWS: tl.constexpr = C.GROUP * C.QUERIES
    D_PAD: tl.constexpr = C.D_PAD
    t0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * C.QUERIES
    b, kv_head, first_list, head_a, t_a = heads_of_program(sizes, C)
    t_a += t0
    inside_a, query_a, block = t_a < sizes.N, t_a % C.BLOCK, first_list + t0 // C.BLOCK
    k_head, v_head = head_ptr(k, b, kv_head), head_ptr(v, b, kv_head)
    first_slot, flags = block * sizes.capacity, lists.mask_rif + block * (sizes.capacity // C.TILE)
    length = tl.maximum(tl.load(lists.length_ri + block), 0)

    q_ad = load_queries(q, b, head_a, t_a, inside_a, C.D, D_PAD)
    do_ae = load_queries(d_out, b, head_a, t_a, inside_a, C.E, C.E_PAD)
    statistics_a = (b * sizes.H + head_a) * sizes.N + t_a
    delta_a = tl.load(delta_ptr + statistics_a, mask=inside_a, other=0.0)
    if (length == 0) | (length > C.SHORT):
        out_ae = load_queries(out, b, head_a, t_a, inside_a, C.E, C.E_PAD)
        delta_a = tl.sum(do_ae.to(tl.float32) * out_ae.to(tl.float32), 1)
        tl.store(delta_ptr + statistics_a, delta_a, mask=inside_a)
    lse_a = tl.load(lse_ptr + statistics_a, mask=inside_a, other=float("inf"))
    if lists.bias_ris is not None:  # listed biases are relative to the block's reference
        lse_a -= tl.load(lists.reference_ri + block)

    dq_ad = tl.zeros((ROWS, D_PAD), tl.float32)
    scale_log2 = sizes.scale * LOG2_E
    slot_s = tl.arange(0, C.KEYS)
    j_s = tl.load(lists.index_ris + first_slot + slot_s, mask=slot_s < length, other=0)
    flag = tl.load(flags)
    for start in range(0, length, C.KEYS):
        k_sd = load_rows(k_head, j_s, k.n, None, C.D, D_PAD, False, C.WIDE)
        v_se = load_rows(v_head, j_s, v.n, None, C.E, C.E_PAD, False, C.WIDE)
        after = start + C.KEYS
        next_j_s = tl.load(lists.index_ris + first_slot + after + slot_s, mask=after + slot_s < length, other=0)
        next_flag = tl.load(flags + after // C.TILE, mask=after < length, other=0)
        logits_as = logits_of_tile(q_ad, k_sd, flag, lists, first_slot + start, query_a, scale_log2, C)
        p_as = tl.exp2(logits_as - lse_a[:, None])
        dp_as = tl.dot(do_ae, tl.trans(v_se), input_precision=C.PRECISION)
        ds_as = p_as * (dp_as - delta_a[:, None])
        dq_ad = tl.dot(ds_as.to(k_sd.dtype), k_sd, dq_ad, input_precision=C.PRECISION)
        j_s, flag = next_j_s, next_flag
    result_ad = (dq_ad * sizes.scale).to(dq.ptr.dtype.element_ty)
    tl.store(query_ptrs(dq, b, head_a, t_a, D_PAD), result_ad, mask=within(inside_a, C.D, D_PAD))
