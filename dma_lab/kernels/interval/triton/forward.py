"""Forward pass of interval attention in Triton: a block of queries over the list of keys that live for it.

Softmax is summed against a reference that is known before (``BlockLists.reference_ri``) rather than against a running
maximum: nothing is rescaled, and the product with V runs on while the next logits are made. A query whose sum left
the range in which that is exact is computed again with the running maximum (Milakov & Gimelshein 2018); which of the
two a query gets depends on its own sum alone, so later tokens change nothing. The next tile's indices are loaded a
step ahead, so that the rows themselves can be fetched while the matrix units work.
"""

import torch
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

SOUND = tl.constexpr(2.0**64)
"""A sum within (1 / SOUND, SOUND) lost no key that float32 would have kept in it."""


def interval_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: KeyLists,
    block: int,
    scale: float,
    tile: Tile,
    redo: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Output (B, H, N, E) and the base-2 logarithm of each query's softmax sum, float32 (B, H, N).

    Arguments as in ``interval_attention``; ``lists`` are for blocks of ``block`` queries. A query that sees no key has
    output 0 and sum infinity, so that its weights come out 0 in the backward pass; one whose list overflowed has NaN.

    ``redo`` has both as another kernel wrote them, and int32 marks (B * H / heads together, blocks, 2): only in blocks
    with a mark are rows computed whose sum left the exact range, and its tensors returned. ``tile`` then is as tall as
    a block.
    """
    if redo is None:
        out, marks = new_heads(q, q.shape[1], v.shape[-1]), None
        lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    else:
        out, lse, marks = redo
    config = query_config(q, k, v, block, tile)
    _forward_kernel[query_grid(q, config)](
        *heads_of(q, k, v, out), lse, marks, lists.blocks, sizes_of(q, k, lists, scale), config, **tile.launch
    )
    return out, lse


@triton.jit
def _forward_kernel(q, k, v, out, lse_ptr, marks_ptr, lists, sizes, C: tl.constexpr):
    # The last queries first: they have most keys where lifetimes are unbounded.
    t0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * C.QUERIES
    if marks_ptr is not None:
        marks = marks_ptr + 2 * (tl.program_id(1) * tl.num_programs(0) + t0 // C.QUERIES)
        if (tl.load(marks) | tl.load(marks + 1)) == 0:
            return
    b, kv_head, first_list, head_a, t_a = heads_of_program(sizes, C)
    t_a += t0
    inside_a, query_a, block = t_a < sizes.N, t_a % C.BLOCK, first_list + t0 // C.BLOCK
    k_head, v_head = head_ptr(k, b, kv_head), head_ptr(v, b, kv_head)
    reference = 0.0
    if lists.bias_ris is not None:
        reference = tl.load(lists.reference_ri + block)
    length = tl.load(lists.length_ri + block)
    q_ad = load_queries(q, b, head_a, t_a, inside_a, C.D, C.D_PAD)

    acc_ae, sum_a, max_a = _attend(q_ad, k_head, k.n, v_head, v.n, lists, block, length, query_a, sizes, C, not C.FIXED)
    written_a = inside_a
    if C.FIXED:
        sound_a = ((sum_a > 1 / SOUND) & (sum_a < SOUND)) | (t_a >= sizes.N)
        if tl.min(sound_a.to(tl.int32), 0) == 0:
            again_ae, sum_again_a, max_again_a = _attend(
                q_ad, k_head, k.n, v_head, v.n, lists, block, length, query_a, sizes, C, True
            )
            acc_ae = tl.where(sound_a[:, None], acc_ae, again_ae)
            sum_a = tl.where(sound_a, sum_a, sum_again_a)
            max_a = tl.where(sound_a, max_a, max_again_a)
        if marks_ptr is not None:  # by its own sum alone, or later tokens would decide which kernel's rounding it gets
            written_a = inside_a & (sound_a == 0)

    sees_a = sum_a > 0
    acc_ae = acc_ae / tl.where(sees_a, sum_a, 1.0)[:, None]
    lse_a = tl.where(sees_a, reference + max_a + tl.log2(tl.where(sees_a, sum_a, 1.0)), float("inf"))
    acc_ae = tl.where(length < 0, float("nan"), acc_ae)
    result_ae = acc_ae.to(out.ptr.dtype.element_ty)
    tl.store(query_ptrs(out, b, head_a, t_a, C.E_PAD), result_ae, mask=within(written_a, C.E, C.E_PAD))
    tl.store(lse_ptr + (b * sizes.H + head_a) * sizes.N + t_a, lse_a, mask=written_a)


@triton.jit
def _attend(
    q_ad, k_head, k_n, v_head, v_n, lists, block, length, query_a, sizes, C: tl.constexpr, RUNNING: tl.constexpr
):  # fmt: skip
    """Weighted sum of V, sum of weights, and what was taken from the logits: a RUNNING maximum, or 0."""
    E_PAD: tl.constexpr = C.E_PAD
    acc_ae = tl.zeros((query_a.shape[0], E_PAD), tl.float32)
    sum_a = tl.zeros((query_a.shape[0],), tl.float32)
    max_a = tl.full((query_a.shape[0],), float("-inf") if RUNNING else 0.0, tl.float32)
    first_slot, flags = block * sizes.capacity, lists.mask_rif + block * (sizes.capacity // C.TILE)
    scale_log2 = sizes.scale * LOG2_E
    slot_s = tl.arange(0, C.KEYS)
    j_s = tl.load(lists.index_ris + first_slot + slot_s, mask=slot_s < length, other=0)
    flag = tl.load(flags)
    for start in range(0, length, C.KEYS):
        k_sd = load_rows(k_head, j_s, k_n, None, C.D, C.D_PAD, False, C.WIDE)
        v_se = load_rows(v_head, j_s, v_n, None, C.E, E_PAD, False, C.WIDE)
        after = start + C.KEYS
        next_j_s = tl.load(lists.index_ris + first_slot + after + slot_s, mask=after + slot_s < length, other=0)
        next_flag = tl.load(flags + after // C.TILE, mask=after < length, other=0)
        logits_as = logits_of_tile(q_ad, k_sd, flag, lists, first_slot + start, query_a, scale_log2, C)
        if RUNNING:
            new_max_a = tl.maximum(max_a, tl.max(logits_as, 1))
            known_a = tl.where(new_max_a == float("-inf"), 0.0, new_max_a)
            weights_as = tl.exp2(logits_as - known_a[:, None])
            shrink_a = tl.exp2(max_a - known_a)
            sum_a = sum_a * shrink_a + tl.sum(weights_as, 1)
            acc_ae = tl.dot(weights_as.to(v_se.dtype), v_se, acc_ae * shrink_a[:, None], input_precision=C.PRECISION)
            max_a = new_max_a
        else:
            weights_as = tl.exp2(logits_as)
            sum_a += tl.sum(weights_as, 1)
            acc_ae = tl.dot(weights_as.to(v_se.dtype), v_se, acc_ae, input_precision=C.PRECISION)
        j_s, flag = next_j_s, next_flag
    return acc_ae, sum_a, max_a
