"""delta of interval attention's backward pass where lists of live keys are short: from the weights, in Triton.

delta = sum(d_out * out) of a query is also the sum of its softmax weights times their gradients. Where few keys live,
what softmax passes back is a difference of near equals, in which the rounding of ``out`` to 16 bits would show: in bf16
up to 8e-3 of a gradient. Elsewhere the output, which is at hand, costs less.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.interval.arguments import heads_of, query_config, query_grid, sizes_of
from dma_lab.kernels.interval.compaction import LOG2_E
from dma_lab.kernels.interval.key_lists import KeyLists
from dma_lab.kernels.interval.tiling import dq_tile
from dma_lab.kernels.interval.triton.tiles import head_ptr, heads_of_program, load_queries, load_rows
from dma_lab.kernels.sizes import cdiv

_PROGRAMS = 264
"""Two for each of an H100's or H200's multiprocessors. Those of one group of heads take its queries in turns, because
short lists lie side by side, at the start above all."""
_LOOK = tl.constexpr(256)
"""Turns whose lists' lengths a program reads at once, to find the short ones."""


def delta_of_short_lists(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, lists: KeyLists, block: int, scale: float
) -> Tensor:
    """delta, float32 (B, H, N), written only for blocks whose lists hold up to ``SHORT_LIST`` keys and not none."""
    tile = dq_tile(max(q.shape[-1], v.shape[-1]), q.dtype)
    config = query_config(q, k, v, block, tile)
    turns, head_groups = query_grid(q, config)
    turns = min(turns, cdiv(_PROGRAMS, head_groups))
    delta = torch.empty_like(lse)
    sizes = sizes_of(q, k, lists, scale)
    _delta_kernel[(turns, head_groups)](
        *heads_of(q, k, v, d_out), lse, delta, lists.blocks, sizes, config, **tile.launch
    )
    return delta


@triton.jit
def _delta_kernel(q, k, v, d_out, lse_ptr, delta_ptr, lists, sizes, C: tl.constexpr):
    ROWS: tl.constexpr = C.GROUP * C.QUERIES
    b, kv_head, first_list, head_a, row_query_a = heads_of_program(sizes, C)
    k_head, v_head = head_ptr(k, b, kv_head), head_ptr(v, b, kv_head)
    scale_log2 = sizes.scale * LOG2_E
    stride = tl.num_programs(0) * C.QUERIES
    for first in range(tl.program_id(0) * C.QUERIES, sizes.N, stride * _LOOK):
        ahead = first + stride * tl.arange(0, _LOOK)
        lengths = tl.load(lists.length_ri + first_list + ahead // C.BLOCK, mask=ahead < sizes.N, other=0)
        short = tl.where((lengths > 0) & (lengths <= C.SHORT), ahead, sizes.N)
        t0 = tl.min(short, 0)
        while t0 < sizes.N:
            block = first_list + t0 // C.BLOCK
            length = tl.load(lists.length_ri + block)
            t_a = t0 + row_query_a
            inside_a, query_a = t_a < sizes.N, t_a % C.BLOCK
            q_ad = load_queries(q, b, head_a, t_a, inside_a, C.D, C.D_PAD)
            do_ae = load_queries(d_out, b, head_a, t_a, inside_a, C.E, C.E_PAD)
            statistics_a = (b * sizes.H + head_a) * sizes.N + t_a
            lse_a = tl.load(lse_ptr + statistics_a, mask=inside_a, other=float("inf"))
            if lists.bias_ris is not None:  # listed biases are relative to the block's reference
                lse_a -= tl.load(lists.reference_ri + block)
            delta_a = tl.zeros((ROWS,), tl.float32)
            for start in range(0, length, C.KEYS):
                slot_s = start + tl.arange(0, C.KEYS)
                listed_s, in_list_s = block * sizes.capacity + slot_s, slot_s < length
                j_s = tl.load(lists.index_ris + listed_s, mask=in_list_s, other=0)
                span_s = tl.load(lists.span_ris + listed_s, mask=in_list_s, other=0)
                k_sd = load_rows(k_head, j_s, k.n, in_list_s, C.D, C.D_PAD, True, C.WIDE)
                v_se = load_rows(v_head, j_s, v.n, in_list_s, C.E, C.E_PAD, True, C.WIDE)
                logits_as = tl.dot(q_ad, tl.trans(k_sd)) * scale_log2 - lse_a[:, None]
                if lists.bias_ris is not None:
                    logits_as += tl.load(lists.bias_ris + listed_s, mask=in_list_s, other=0.0)[None, :]
                live = ((span_s & 0xFFFF)[None, :] <= query_a[:, None]) & (query_a[:, None] < (span_s >> 16)[None, :])
                p_as = tl.exp2(tl.where(live, logits_as, float("-inf")))
                delta_a += tl.sum(p_as * tl.dot(do_ae, tl.trans(v_se)), 1)
            tl.store(delta_ptr + statistics_a, delta_a, mask=inside_a)
            t0 = tl.min(tl.where(short > t0, short, sizes.N), 0)
