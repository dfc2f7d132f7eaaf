"""Forward pass of interval attention on Hopper GPUs: the Triton kernel's arithmetic in specialised warps."""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from dma_lab.kernels.interval.arguments import heads_of, new_heads
from dma_lab.kernels.interval.compaction import LOG2_E
from dma_lab.kernels.interval.hopper.ring import (
    CONSUMER_REGISTERS,
    KEYS,
    PRODUCER_REGISTERS,
    WARPGROUP_ROWS,
    await_tile,
    new_ring,
    place,
    produce_lists,
    release,
    schedule,
    sum_within_threads,
    weights_of_tile,
)
from dma_lab.kernels.interval.key_lists import TILE, KeyLists
from dma_lab.kernels.interval.tiling import LIST_ROWS, Tile
from dma_lab.kernels.interval.triton.forward import SOUND, interval_forward

_STAGES = 6


def hopper_forward(q: Tensor, k: Tensor, v: Tensor, lists: KeyLists, scale: float) -> tuple[Tensor, Tensor]:
    """What ``interval_forward`` gives, for inputs that ``hopper_supports``.

    Blocks with a query whose sum left the exact range are marked and done again by the Triton kernel.
    """
    programs, sizes, config = schedule(q, k, v, lists, scale, _STAGES)
    out = new_heads(q, q.shape[1], v.shape[-1])
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    marks = torch.empty(sizes.items, 2, dtype=torch.int32, device=q.device)
    _forward_kernel[(programs,)](*heads_of(q, k, v, out), lse, marks, lists.blocks, sizes, config, num_warps=4)
    return interval_forward(q, k, v, lists, config.QUERIES, scale, Tile(LIST_ROWS, TILE, 8, 1), redo=(out, lse, marks))


@gluon.jit
def _forward_kernel(q, k, v, out, lse_ptr, marks_ptr, lists, sizes, C: gl.constexpr):
    ring = new_ring(k.ptr.dtype.element_ty, C)
    upper: gl.constexpr = 0
    lower: gl.constexpr = 1
    gl.warp_specialize(
        [
            (_attend, (upper, q, out, lse_ptr, marks_ptr, lists, sizes, ring, C)),
            (_attend, (lower, q, out, lse_ptr, marks_ptr, lists, sizes, ring, C)),
            (produce_lists, (k, v, lists, sizes, ring, C)),
        ],
        [4, 4],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )


@gluon.jit
def _attend(HALF: gl.constexpr, q, out, lse_ptr, marks_ptr, lists, sizes, ring, C: gl.constexpr):
    """One of the two consumers. While softmax of a tile is made, the one before is multiplied with V."""
    D: gl.constexpr = C.D
    E: gl.constexpr = C.E
    ROWS: gl.constexpr = WARPGROUP_ROWS
    HAS_BIAS: gl.constexpr = lists.bias_ris is not None
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, E, 16])
    q_layout: gl.constexpr = gl.DotOperandLayout(0, s_layout, 2)
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    load_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    store_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // E, E // 8], [4, 1], [1, 0])
    # One row per thread of each layout: of logits, of loads of Q, of stores of the output.
    row_a = HALF * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, s_layout))
    row_q_a = HALF * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, load_layout))
    row_o_a = HALF * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, store_layout))
    column_d = gl.arange(0, D, layout=gl.SliceLayout(0, load_layout))
    column_e = gl.arange(0, E, layout=gl.SliceLayout(0, store_layout))
    nothing_as = gl.zeros((ROWS, KEYS), gl.float32, layout=s_layout)
    scale_log2 = sizes.scale * LOG2_E
    query_a = row_a % C.QUERIES
    n = 0
    for item in range(gl.program_id(0), sizes.items, gl.num_programs(0)):
        query_block, b, h0, _kv_head, block = place(item, sizes, C)
        t0 = query_block * C.QUERIES
        t_q_a = t0 + row_q_a % C.QUERIES
        q_head = q.ptr + b * q.b + h0.to(gl.int64) * q.h
        q_row_a = (row_q_a // C.QUERIES).to(gl.int64) * q.h + t_q_a.to(gl.int64) * q.n
        q_loaded_ad = gl.load(q_head + q_row_a[:, None] + column_d[None, :], mask=(t_q_a < sizes.N)[:, None], other=0.0)
        q_ad = gl.convert_layout(q_loaded_ad, q_layout)
        length = gl.load(lists.length_ri + block)
        tiles = gl.maximum(gl.cdiv(length, KEYS), 1)
        flags = lists.mask_rif + block * (sizes.capacity // KEYS)
        flag = gl.load(flags)
        next_flag = gl.load(flags + gl.minimum(1, tiles - 1))

        # The first tile's weights; then, tile by tile, the next one's beside the product of the last.
        acc_ae = gl.zeros((ROWS, E), gl.float32, layout=acc_layout)
        stage = await_tile(ring, n, C.STAGES)
        s_as = warpgroup_mma(q_ad, ring.k.index(stage).permute((1, 0)), nothing_as, use_acc=False, is_async=True)
        s_as = warpgroup_mma_wait(0, deps=[s_as])
        weights_as = weights_of_tile(s_as, flag, ring, stage, query_a, None, scale_log2, HAS_BIAS)
        sum_a4 = sum_within_threads(weights_as)
        p_as = gl.convert_layout(weights_as.to(ring.v.dtype), weights_layout)
        for tile in range(1, tiles):
            before = stage
            n += 1
            flag = next_flag
            next_flag = gl.load(flags + gl.minimum(tile + 1, tiles - 1))
            stage = await_tile(ring, n, C.STAGES)
            s_as = warpgroup_mma(q_ad, ring.k.index(stage).permute((1, 0)), nothing_as, use_acc=False, is_async=True)
            acc_ae = warpgroup_mma(p_as, ring.v.index(before), acc_ae, is_async=True)
            s_as = warpgroup_mma_wait(1, deps=[s_as])
            weights_as = weights_of_tile(s_as, flag, ring, stage, query_a, None, scale_log2, HAS_BIAS)
            sum_a4 += sum_within_threads(weights_as)
            acc_ae, p_as = warpgroup_mma_wait(0, deps=[acc_ae, p_as])
            release(ring, before)
            p_as = gl.convert_layout(weights_as.to(ring.v.dtype), weights_layout)
        acc_ae = warpgroup_mma(p_as, ring.v.index(stage), acc_ae, is_async=True)
        acc_ae, p_as = warpgroup_mma_wait(0, deps=[acc_ae, p_as])
        release(ring, stage)
        n += 1

        sum_a = gl.convert_layout(gl.sum(sum_a4, 1), gl.SliceLayout(1, s_layout))
        t_a, sees_a = t0 + query_a, sum_a > 0
        lse_a = gl.log2(gl.where(sees_a, sum_a, 1.0))
        if HAS_BIAS:
            lse_a += gl.load(lists.reference_ri + block)
        lse_a = gl.where(sees_a, lse_a, float("inf"))
        gl.store(lse_ptr + (b * sizes.H + h0 + row_a // C.QUERIES) * sizes.N + t_a, lse_a, mask=t_a < sizes.N)
        sound_a = ((sum_a > 1 / SOUND) & (sum_a < SOUND)) | (t_a >= sizes.N)
        mark = marks_ptr + ((b * sizes.H + h0) // C.GROUP * sizes.blocks + query_block) * 2 + HALF
        gl.store(mark, 1 - gl.min(sound_a.to(gl.int32), 0))
        divisor_a = gl.where(sees_a, sum_a, 1.0)
        divisor_a = gl.where(length < 0, float("nan"), divisor_a)
        acc_ae = acc_ae / gl.convert_layout(divisor_a, gl.SliceLayout(1, acc_layout))[:, None]
        result_ae = gl.convert_layout(acc_ae.to(out.ptr.dtype.element_ty), store_layout)
        t_o_a = t0 + row_o_a % C.QUERIES
        out_head = out.ptr + b * out.b + h0.to(gl.int64) * out.h
        out_row_a = (row_o_a // C.QUERIES).to(gl.int64) * out.h + t_o_a.to(gl.int64) * out.n
        gl.store(out_head + out_row_a[:, None] + column_e[None, :], result_ae, mask=(t_o_a < sizes.N)[:, None])
