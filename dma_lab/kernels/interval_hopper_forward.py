"""Forward pass of interval attention on Hopper GPUs: the Triton kernel's arithmetic in specialised warps."""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from dma_lab.kernels.hopper_ring import (
    ATTENDER_REGISTERS,
    FETCHER_REGISTERS,
    KEYS,
    WARPGROUP_ROWS,
    Work,
    fetch_lists,
    new_ring,
    place,
    sum_within_threads,
    weights_of_tile,
)
from dma_lab.kernels.interval_triton_forward import SOUND, interval_forward, needs_wide_offsets
from dma_lab.kernels.key_lists import TILE, KeyLists
from dma_lab.kernels.key_lists_triton import LOG2_E
from dma_lab.kernels.tiling import LIST_ROWS, Tile

_STAGES = 6


def hopper_forward(q: Tensor, k: Tensor, v: Tensor, lists: KeyLists, scale: float) -> tuple[Tensor, Tensor]:
    """What ``interval_forward`` gives, for inputs that ``hopper_suits``.

    Blocks with a query whose sum left the exact range are marked and done again by the Triton kernel.
    """
    B, H, N, D = q.shape
    D_v, work = v.shape[-1], Work(q, k)
    out = torch.empty(B, N, H, D_v, dtype=q.dtype, device=q.device).transpose(1, 2)
    lse = torch.empty(B, H, N, dtype=torch.float32, device=q.device)
    unsound = torch.empty(work.items, 2, dtype=torch.int32, device=q.device)
    has_bias = lists.bias_rbs is not None
    _forward_kernel[(work.programs,)](
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
        lse,
        unsound,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *out.stride()[:3],
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
        D_V=D_v,
        GROUP=work.group,
        QUERIES=work.queries,
        STAGES=_STAGES,
        HAS_BIAS=has_bias,
        WIDE=needs_wide_offsets(k, v),
        num_warps=4,
    )
    return interval_forward(q, k, v, lists, work.queries, scale, Tile(LIST_ROWS, TILE, 8, 1), redo=(out, lse, unsound))


@gluon.jit
def _attend(
    HALF: gl.constexpr,
    pointers,
    strides,
    sizes,
    scale,
    ring,
    D: gl.constexpr,
    D_V: gl.constexpr,
    GROUP: gl.constexpr,
    QUERIES: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_BIAS: gl.constexpr,
):
    """One of the two attending warp groups. While softmax of a tile is made, the one before is multiplied with V."""
    q_ptr, mask_ptr, total_ptr, reference_ptr, out_ptr, lse_ptr, unsound_ptr = pointers
    q_b, q_h, q_n, o_b, o_h, o_n = strides
    H, heads_a_key, N, capacity, items, blocks, head_groups, abreast = sizes
    k_ring, v_ring, span_ring, bias_ring, full, free = ring
    ROWS: gl.constexpr = WARPGROUP_ROWS
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D_V, 16])
    q_layout: gl.constexpr = gl.DotOperandLayout(0, s_layout, 2)
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    load_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    store_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D_V, D_V // 8], [4, 1], [1, 0])
    row = HALF * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, s_layout))
    row_q = HALF * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, load_layout))
    row_o = HALF * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, store_layout))
    column = gl.arange(0, D, layout=gl.SliceLayout(0, load_layout))
    column_v = gl.arange(0, D_V, layout=gl.SliceLayout(0, store_layout))
    nothing = gl.zeros((ROWS, KEYS), gl.float32, layout=s_layout)
    scale_log2 = scale * LOG2_E
    query = row % QUERIES
    n = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        query_block, b, h0, kv_head = place(item, blocks, head_groups, abreast, H, heads_a_key, GROUP)
        block = (b * (H // heads_a_key) + kv_head) * blocks + query_block
        t0 = query_block * QUERIES
        t_q = t0 + row_q % QUERIES
        q_head = q_ptr + b * q_b + h0.to(gl.int64) * q_h
        q_rows = q_head + ((row_q // QUERIES).to(gl.int64) * q_h + t_q.to(gl.int64) * q_n)[:, None] + column[None, :]
        q = gl.convert_layout(gl.load(q_rows, mask=(t_q < N)[:, None], other=0.0), q_layout)
        listed = gl.load(total_ptr + block)
        tiles = gl.maximum(gl.cdiv(listed, KEYS), 1)
        masks = mask_ptr + block * (capacity // KEYS)
        asks = gl.load(masks)
        next_asks = gl.load(masks + gl.minimum(1, tiles - 1))

        acc = gl.zeros((ROWS, D_V), gl.float32, layout=acc_layout)
        stage = n % STAGES
        mbarrier.wait(full.index(stage), (n // STAGES) & 1)
        s = warpgroup_mma(q, k_ring.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        weights = weights_of_tile(
            s, asks, span_ring.index(stage), bias_ring.index(stage), query, None, scale_log2, HAS_BIAS, False
        )
        total = sum_within_threads(weights)
        p = gl.convert_layout(weights.to(v_ring.dtype), weights_layout)
        for tile in range(1, tiles):
            before = stage
            n += 1
            stage = n % STAGES
            asks = next_asks
            next_asks = gl.load(masks + gl.minimum(tile + 1, tiles - 1))
            mbarrier.wait(full.index(stage), (n // STAGES) & 1)
            s = warpgroup_mma(q, k_ring.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
            acc = warpgroup_mma(p, v_ring.index(before), acc, is_async=True)
            s = warpgroup_mma_wait(1, deps=[s])
            weights = weights_of_tile(
                s, asks, span_ring.index(stage), bias_ring.index(stage), query, None, scale_log2, HAS_BIAS, False
            )
            total += sum_within_threads(weights)
            acc, p = warpgroup_mma_wait(0, deps=[acc, p])
            mbarrier.arrive(free.index(before), count=1)
            p = gl.convert_layout(weights.to(v_ring.dtype), weights_layout)
        acc = warpgroup_mma(p, v_ring.index(stage), acc, is_async=True)
        acc, p = warpgroup_mma_wait(0, deps=[acc, p])
        mbarrier.arrive(free.index(stage), count=1)
        n += 1

        total = gl.convert_layout(gl.sum(total, 1), gl.SliceLayout(1, s_layout))
        t, sees = t0 + query, total > 0
        lse = gl.log2(gl.where(sees, total, 1.0))
        if HAS_BIAS:
            lse += gl.load(reference_ptr + block)
        lse = gl.where(sees, lse, float("inf"))
        gl.store(lse_ptr + (b * H + h0 + row // QUERIES) * N + t, lse, mask=t < N)
        sound = ((total > 1 / SOUND) & (total < SOUND)) | (t >= N)
        mark = unsound_ptr + ((b * H + h0) // GROUP * blocks + query_block) * 2 + HALF
        gl.store(mark, 1 - gl.min(sound.to(gl.int32), 0))
        divisor = gl.where(sees, total, 1.0)
        divisor = gl.where(listed < 0, float("nan"), divisor)
        acc = acc / gl.convert_layout(divisor, gl.SliceLayout(1, acc_layout))[:, None]
        result = gl.convert_layout(acc.to(out_ptr.dtype.element_ty), store_layout)
        t_o = t0 + row_o % QUERIES
        out_head = out_ptr + b * o_b + h0.to(gl.int64) * o_h
        out_rows = out_head + ((row_o // QUERIES).to(gl.int64) * o_h + t_o.to(gl.int64) * o_n)[:, None]
        gl.store(out_rows + column_v[None, :], result, mask=(t_o < N)[:, None])


@gluon.jit
def _forward_kernel(
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
    lse_ptr,
    unsound_ptr,
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
    pointers = (q_ptr, mask_ptr, total_ptr, reference_ptr, out_ptr, lse_ptr, unsound_ptr)
    strides = (q_b, q_h, q_n, o_b, o_h, o_n)
    sizes = (H, heads_a_key, N, capacity, items, blocks, head_groups, abreast)
    listed = (k_ptr, v_ptr, list_ptr, span_ptr, list_bias_ptr, total_ptr)
    key_strides = (k_b, k_h, k_n, v_b, v_h, v_n)
    upper: gl.constexpr = 0
    lower: gl.constexpr = 1
    gl.warp_specialize(
        [
            (_attend, (upper, pointers, strides, sizes, scale, ring, D, D_V, GROUP, QUERIES, STAGES, HAS_BIAS)),
            (_attend, (lower, pointers, strides, sizes, scale, ring, D, D_V, GROUP, QUERIES, STAGES, HAS_BIAS)),
            (fetch_lists, (listed, key_strides, sizes, ring, D, D_V, GROUP, STAGES, HAS_BIAS, WIDE)),
        ],
        [4, 4],
        [ATTENDER_REGISTERS, FETCHER_REGISTERS],
    )
