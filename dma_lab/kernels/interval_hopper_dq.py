"""dQ of interval attention on Hopper GPUs: a block of queries over its list, in specialised warps."""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from dma_lab.kernels.hopper_ring import (
    ATTENDER_REGISTERS,
    FETCHER_REGISTERS,
    KEYS,
    WARPGROUP_ROWS,
    Work,
    fetch_lists,
    new_ring,
    place,
    thread_barrier,
    weights_of_tile,
)
from dma_lab.kernels.interval_triton_forward import needs_wide_offsets
from dma_lab.kernels.key_lists import KeyLists
from dma_lab.kernels.key_lists_triton import LOG2_E
from dma_lab.kernels.tiling import SHORT_LIST

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
    """What ``interval_backward_dq`` gives and writes, for inputs that ``hopper_suits``."""
    B, H, N, D = q.shape
    work = Work(q, k)
    dq = torch.empty(B, N, H, D, dtype=q.dtype, device=q.device).transpose(1, 2)
    has_bias = lists.bias_rbs is not None
    _dq_kernel[(work.programs,)](
        q,
        k,
        v,
        lists.index_rbs,
        lists.span_rbs,
        lists.mask_rbt,
        lists.total_rb,
        lists.bias_rbs if has_bias else lists.span_rbs,
        lists.reference_rb if has_bias else lists.total_rb,
        out,
        d_out,
        lse,
        delta,
        dq,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *out.stride()[:3],
        *d_out.stride()[:3],
        *dq.stride()[:3],
        H,
        H // k.shape[1],
        N,
        lists.index_rbs.shape[2],
        work.items,
        work.blocks,
        work.head_groups,
        work.abreast,
        scale,
        D=D,
        D_V=v.shape[-1],
        GROUP=work.group,
        QUERIES=work.queries,
        STAGES=_STAGES,
        HAS_BIAS=has_bias,
        WIDE=needs_wide_offsets(k, v),
        num_warps=4,
    )
    return dq


@gluon.jit
def _gradient_of_logits(
    s, d_weights, asks, span_line, bias_line, query, lse, delta, scale_log2, HAS_BIAS: gl.constexpr
):
    weights = weights_of_tile(s, asks, span_line, bias_line, query, lse, scale_log2, HAS_BIAS, True)
    return weights * (d_weights - delta[:, None])


@gluon.jit
def _attend(
    HALF: gl.constexpr,
    pointers,
    strides,
    sizes,
    scale,
    ring,
    q_lines,
    D: gl.constexpr,
    D_V: gl.constexpr,
    GROUP: gl.constexpr,
    QUERIES: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_BIAS: gl.constexpr,
):
    """One of the two attending warp groups. While a tile's logits get their gradients, the last tile's go into dQ.

    Q is read from shared memory: registers hold d_out, which three products a tile leave room for.
    """
    q_ptr, mask_ptr, total_ptr, reference_ptr, out_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr = pointers
    q_b, q_h, q_n, o_b, o_h, o_n, do_b, do_h, do_n, dq_b, dq_h, dq_n = strides
    H, heads_a_key, N, capacity, items, blocks, head_groups, abreast = sizes
    k_ring, v_ring, span_ring, bias_ring, full, free = ring
    ROWS: gl.constexpr = WARPGROUP_ROWS
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    dq_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    do_layout: gl.constexpr = gl.DotOperandLayout(0, s_layout, 2)
    ds_layout: gl.constexpr = gl.DotOperandLayout(0, dq_layout, 2)
    load_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    load_layout_v: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D_V, D_V // 8], [4, 1], [1, 0])
    rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    row = HALF * ROWS + gl.arange(0, ROWS, layout=rows)
    row_q = HALF * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, load_layout))
    row_o = HALF * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, load_layout_v))
    column = gl.arange(0, D, layout=gl.SliceLayout(0, load_layout))
    column_v = gl.arange(0, D_V, layout=gl.SliceLayout(0, load_layout_v))
    nothing = gl.zeros((ROWS, KEYS), gl.float32, layout=s_layout)
    scale_log2 = scale * LOG2_E
    query = row % QUERIES
    q = q_lines.index(HALF)
    n = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        query_block, b, h0, kv_head = place(item, blocks, head_groups, abreast, H, heads_a_key, GROUP)
        block = (b * (H // heads_a_key) + kv_head) * blocks + query_block
        t0 = query_block * QUERIES
        t_q, head_q = t0 + row_q % QUERIES, (h0 + row_q // QUERIES).to(gl.int64)
        t_o, head_o = t0 + row_o % QUERIES, (h0 + row_o // QUERIES).to(gl.int64)
        q_rows = q_ptr + (b * q_b + head_q * q_h + t_q.to(gl.int64) * q_n)[:, None] + column[None, :]
        out_rows = out_ptr + (b * o_b + head_o * o_h + t_o.to(gl.int64) * o_n)[:, None] + column_v[None, :]
        do_rows = do_ptr + (b * do_b + head_o * do_h + t_o.to(gl.int64) * do_n)[:, None] + column_v[None, :]
        q.store(gl.load(q_rows, mask=(t_q < N)[:, None], other=0.0))
        do_me = gl.load(do_rows, mask=(t_o < N)[:, None], other=0.0)
        out_me = gl.load(out_rows, mask=(t_o < N)[:, None], other=0.0)
        delta_rows = delta_ptr + (b * H + head_o) * N + t_o
        delta_o = gl.load(delta_rows, mask=t_o < N, other=0.0)  # early, for its latency; counts if the list is short
        total = gl.load(total_ptr + block)
        if (total <= 0) | (total > _SHORT):
            delta_o = gl.sum(do_me.to(gl.float32) * out_me.to(gl.float32), 1)
            gl.store(delta_rows, delta_o, mask=t_o < N)
        delta = gl.convert_layout(delta_o, rows)
        do = gl.convert_layout(do_me, do_layout)
        t = t0 + query
        lse = gl.load(lse_ptr + (b * H + h0 + row // QUERIES) * N + t, mask=t < N, other=float("inf"))
        if HAS_BIAS:  # listed biases are relative to the block's reference
            lse -= gl.load(reference_ptr + block)
        tiles = gl.maximum(gl.cdiv(total, KEYS), 1)
        masks = mask_ptr + block * (capacity // KEYS)
        asks = gl.load(masks)
        next_asks = gl.load(masks + gl.minimum(1, tiles - 1))
        fence_async_shared()
        thread_barrier()

        dq = gl.zeros((ROWS, D), gl.float32, layout=dq_layout)
        stage = n % STAGES
        mbarrier.wait(full.index(stage), (n // STAGES) & 1)
        s = warpgroup_mma(q, k_ring.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
        d_weights = warpgroup_mma(do, v_ring.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
        s, d_weights = warpgroup_mma_wait(0, deps=[s, d_weights])
        span_line, bias_line = span_ring.index(stage), bias_ring.index(stage)
        d_logits = _gradient_of_logits(
            s, d_weights, asks, span_line, bias_line, query, lse, delta, scale_log2, HAS_BIAS
        )
        ds = gl.convert_layout(d_logits.to(k_ring.dtype), ds_layout)
        for tile in range(1, tiles):
            before = stage
            n += 1
            stage = n % STAGES
            asks = next_asks
            next_asks = gl.load(masks + gl.minimum(tile + 1, tiles - 1))
            mbarrier.wait(full.index(stage), (n // STAGES) & 1)
            s = warpgroup_mma(q, k_ring.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
            d_weights = warpgroup_mma(do, v_ring.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
            dq = warpgroup_mma(ds, k_ring.index(before), dq, is_async=True)
            s, d_weights = warpgroup_mma_wait(1, deps=[s, d_weights])
            span_line, bias_line = span_ring.index(stage), bias_ring.index(stage)
            d_logits = _gradient_of_logits(
                s, d_weights, asks, span_line, bias_line, query, lse, delta, scale_log2, HAS_BIAS
            )
            dq, ds = warpgroup_mma_wait(0, deps=[dq, ds])
            mbarrier.arrive(free.index(before), count=1)
            ds = gl.convert_layout(d_logits.to(k_ring.dtype), ds_layout)
        dq = warpgroup_mma(ds, k_ring.index(stage), dq, is_async=True)
        dq, ds = warpgroup_mma_wait(0, deps=[dq, ds])
        mbarrier.arrive(free.index(stage), count=1)
        n += 1

        result = gl.convert_layout((dq * scale).to(dq_ptr.dtype.element_ty), load_layout)
        dq_rows = dq_ptr + (b * dq_b + head_q * dq_h + t_q.to(gl.int64) * dq_n)[:, None] + column[None, :]
        gl.store(dq_rows, result, mask=(t_q < N)[:, None])


@gluon.jit
def _dq_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    list_ptr,
    span_ptr,
    mask_ptr,
    total_ptr,
    list_bias_ptr,
    reference_ptr,
    out_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    o_b,
    o_h,
    o_n,
    do_b,
    do_h,
    do_n,
    dq_b,
    dq_h,
    dq_n,
    H,
    heads_a_key,
    N,
    capacity,
    items,
    blocks,
    head_groups,
    abreast,
    scale,
    D: gl.constexpr,
    D_V: gl.constexpr,
    GROUP: gl.constexpr,
    QUERIES: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    WIDE: gl.constexpr,
):
    ring = new_ring(k_ptr, v_ptr, D, D_V, STAGES)
    matrix: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    q_lines = gl.allocate_shared_memory(q_ptr.dtype.element_ty, [2, WARPGROUP_ROWS, D], matrix)
    pointers = (q_ptr, mask_ptr, total_ptr, reference_ptr, out_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr)
    strides = (q_b, q_h, q_n, o_b, o_h, o_n, do_b, do_h, do_n, dq_b, dq_h, dq_n)
    sizes = (H, heads_a_key, N, capacity, items, blocks, head_groups, abreast)
    listed = (k_ptr, v_ptr, list_ptr, span_ptr, list_bias_ptr, total_ptr)
    key_strides = (k_b, k_h, k_n, v_b, v_h, v_n)
    upper: gl.constexpr = 0
    lower: gl.constexpr = 1
    gl.warp_specialize(
        [
            (
                _attend,
                (upper, pointers, strides, sizes, scale, ring, q_lines, D, D_V, GROUP, QUERIES, STAGES, HAS_BIAS),
            ),
            (
                _attend,
                (lower, pointers, strides, sizes, scale, ring, q_lines, D, D_V, GROUP, QUERIES, STAGES, HAS_BIAS),
            ),
            (fetch_lists, (listed, key_strides, sizes, ring, D, D_V, GROUP, STAGES, HAS_BIAS, WIDE)),
        ],
        [4, 4],
        [ATTENDER_REGISTERS, FETCHER_REGISTERS],
    )
