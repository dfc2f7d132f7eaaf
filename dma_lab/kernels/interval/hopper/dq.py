"""dQ of interval attention on Hopper GPUs: a block of queries over its list, in specialised warps."""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

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
    thread_barrier,
    weights_of_tile,
)
from dma_lab.kernels.interval.key_lists import KeyLists
from dma_lab.kernels.interval.tiling import SHORT_LIST

_STAGES = 5
_SHORT = gl.constexpr(SHORT_LIST)


def hopper_dq(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    delta: Tensor,
    lists: KeyLists,
    scale: float,
) -> Tensor:
    """What ``interval_backward_dq`` gives and writes, for inputs that ``hopper_supports``."""
    programs, sizes, config = schedule(q, k, v, lists, scale, _STAGES)
    dq = new_heads(q, q.shape[1], q.shape[-1])
    _dq_kernel[(programs,)](*heads_of(q, k, v, out, d_out, dq), lse, delta, lists.blocks, sizes, config, num_warps=4)
    return dq


@gluon.jit
def _dq_kernel(q, k, v, out, d_out, dq, lse_ptr, delta_ptr, lists, sizes, C: gl.constexpr):
    ring = new_ring(k.ptr.dtype.element_ty, C)
    matrix: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    q_halves = gl.allocate_shared_memory(q.ptr.dtype.element_ty, [2, WARPGROUP_ROWS, C.D], matrix)
    upper: gl.constexpr = 0
    lower: gl.constexpr = 1
    gl.warp_specialize(
        [
            (_attend, (upper, q, out, d_out, dq, lse_ptr, delta_ptr, lists, sizes, ring, q_halves, C)),
            (_attend, (lower, q, out, d_out, dq, lse_ptr, delta_ptr, lists, sizes, ring, q_halves, C)),
            (produce_lists, (k, v, lists, sizes, ring, C)),
        ],
        [4, 4],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )


@gluon.jit
def _attend(HALF: gl.constexpr, q, out, d_out, dq, lse_ptr, delta_ptr, lists, sizes, ring, q_halves, C: gl.constexpr):
    """One of the two consumers. While a tile's logits get their gradients, the last tile's go into dQ.

    Q is read from shared memory: registers hold d_out, which three products per tile leave room for.
    """
    D: gl.constexpr = C.D
    E: gl.constexpr = C.E
    ROWS: gl.constexpr = WARPGROUP_ROWS
    HAS_BIAS: gl.constexpr = lists.bias_ris is not None
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    dq_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    do_layout: gl.constexpr = gl.DotOperandLayout(0, s_layout, 2)
    ds_layout: gl.constexpr = gl.DotOperandLayout(0, dq_layout, 2)
    load_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    load_layout_e: gl.constexpr = gl.BlockedLayout([1, 8], [256 // E, E // 8], [4, 1], [1, 0])
    rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    # One row per thread of each layout: of logits, of loads of Q, of loads of the output and its gradient.
    row_a = HALF * ROWS + gl.arange(0, ROWS, layout=rows)
    row_q_a = HALF * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, load_layout))
    row_o_a = HALF * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, load_layout_e))
    column_d = gl.arange(0, D, layout=gl.SliceLayout(0, load_layout))
    column_e = gl.arange(0, E, layout=gl.SliceLayout(0, load_layout_e))
    nothing_as = gl.zeros((ROWS, KEYS), gl.float32, layout=s_layout)
    scale_log2 = sizes.scale * LOG2_E
    query_a = row_a % C.QUERIES
    q_ad = q_halves.index(HALF)
    n = 0
    for item in range(gl.program_id(0), sizes.items, gl.num_programs(0)):
        query_block, b, h0, _kv_head, block = place(item, sizes, C)
        t0 = query_block * C.QUERIES
        t_q_a, head_q_a = t0 + row_q_a % C.QUERIES, (h0 + row_q_a // C.QUERIES).to(gl.int64)
        t_o_a, head_o_a = t0 + row_o_a % C.QUERIES, (h0 + row_o_a // C.QUERIES).to(gl.int64)
        inside_q_a, inside_o_a = t_q_a < sizes.N, t_o_a < sizes.N
        q_rows = q.ptr + (b * q.b + head_q_a * q.h + t_q_a.to(gl.int64) * q.n)[:, None] + column_d[None, :]
        out_rows = out.ptr + (b * out.b + head_o_a * out.h + t_o_a.to(gl.int64) * out.n)[:, None] + column_e[None, :]
        do_rows = d_out.ptr + (b * d_out.b + head_o_a * d_out.h + t_o_a.to(gl.int64) * d_out.n)[:, None]
        q_ad.store(gl.load(q_rows, mask=inside_q_a[:, None], other=0.0))
        do_loaded_ae = gl.load(do_rows + column_e[None, :], mask=inside_o_a[:, None], other=0.0)
        out_ae = gl.load(out_rows, mask=inside_o_a[:, None], other=0.0)
        delta_rows = delta_ptr + (b * sizes.H + head_o_a) * sizes.N + t_o_a
        # Early, for its latency; it counts if the list is short.
        delta_o_a = gl.load(delta_rows, mask=inside_o_a, other=0.0)
        length = gl.load(lists.length_ri + block)
        if (length <= 0) | (length > _SHORT):
            delta_o_a = gl.sum(do_loaded_ae.to(gl.float32) * out_ae.to(gl.float32), 1)
            gl.store(delta_rows, delta_o_a, mask=inside_o_a)
        delta_a = gl.convert_layout(delta_o_a, rows)
        do_ae = gl.convert_layout(do_loaded_ae, do_layout)
        t_a = t0 + query_a
        statistics_a = (b * sizes.H + h0 + row_a // C.QUERIES) * sizes.N + t_a
        lse_a = gl.load(lse_ptr + statistics_a, mask=t_a < sizes.N, other=float("inf"))
        if HAS_BIAS:  # listed biases are relative to the block's reference
            lse_a -= gl.load(lists.reference_ri + block)
        tiles = gl.maximum(gl.cdiv(length, KEYS), 1)
        flags = lists.mask_rif + block * (sizes.capacity // KEYS)
        flag = gl.load(flags)
        next_flag = gl.load(flags + gl.minimum(1, tiles - 1))
        fence_async_shared()
        thread_barrier()

        # The first tile's gradients; then, tile by tile, the next one's beside the last one's product with K.
        dq_ad = gl.zeros((ROWS, D), gl.float32, layout=dq_layout)
        stage = await_tile(ring, n, C.STAGES)
        s_as = warpgroup_mma(q_ad, ring.k.index(stage).permute((1, 0)), nothing_as, use_acc=False, is_async=True)
        dp_as = warpgroup_mma(do_ae, ring.v.index(stage).permute((1, 0)), nothing_as, use_acc=False, is_async=True)
        s_as, dp_as = warpgroup_mma_wait(0, deps=[s_as, dp_as])
        p_as = weights_of_tile(s_as, flag, ring, stage, query_a, lse_a, scale_log2, HAS_BIAS)
        d_logits_as = p_as * (dp_as - delta_a[:, None])
        ds_as = gl.convert_layout(d_logits_as.to(ring.k.dtype), ds_layout)
        for tile in range(1, tiles):
            before = stage
            n += 1
            flag = next_flag
            next_flag = gl.load(flags + gl.minimum(tile + 1, tiles - 1))
            stage = await_tile(ring, n, C.STAGES)
            s_as = warpgroup_mma(q_ad, ring.k.index(stage).permute((1, 0)), nothing_as, use_acc=False, is_async=True)
            dp_as = warpgroup_mma(do_ae, ring.v.index(stage).permute((1, 0)), nothing_as, use_acc=False, is_async=True)
            dq_ad = warpgroup_mma(ds_as, ring.k.index(before), dq_ad, is_async=True)
            s_as, dp_as = warpgroup_mma_wait(1, deps=[s_as, dp_as])
            p_as = weights_of_tile(s_as, flag, ring, stage, query_a, lse_a, scale_log2, HAS_BIAS)
            d_logits_as = p_as * (dp_as - delta_a[:, None])
            dq_ad, ds_as = warpgroup_mma_wait(0, deps=[dq_ad, ds_as])
            release(ring, before)
            ds_as = gl.convert_layout(d_logits_as.to(ring.k.dtype), ds_layout)
        dq_ad = warpgroup_mma(ds_as, ring.k.index(stage), dq_ad, is_async=True)
        dq_ad, ds_as = warpgroup_mma_wait(0, deps=[dq_ad, ds_as])
        release(ring, stage)
        n += 1

        result_ad = gl.convert_layout((dq_ad * sizes.scale).to(dq.ptr.dtype.element_ty), load_layout)
        dq_rows = dq.ptr + (b * dq.b + head_q_a * dq.h + t_q_a.to(gl.int64) * dq.n)[:, None] + column_d[None, :]
        gl.store(dq_rows, result_ad, mask=inside_q_a[:, None])
