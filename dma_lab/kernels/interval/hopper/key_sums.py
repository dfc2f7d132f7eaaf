"""The sums of dK, dV and dbias over the queries of a group of keys: what a consumer on Hopper GPUs does."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from dma_lab.kernels.interval.compaction import LOG2_E
from dma_lab.kernels.interval.hopper.query_ring import TILE_QUERIES, lifetimes, pass_on
from dma_lab.kernels.interval.hopper.ring import await_tile, release, sum_within_threads, thread_barrier

GROUP_KEYS = gl.constexpr(64)


@gluon.jit
def sum_queries(HALF: gl.constexpr, inputs, lines, results, pair, N, scale, ring, C: gl.constexpr):
    """One of the two consumers. Both weights and their gradients are made while a product runs."""
    D: gl.constexpr = C.D
    E: gl.constexpr = C.E
    k_head, k_n, v_head, v_n, k_halves, v_halves = inputs
    bias_ptr, expiry_ptr, order_ptr = lines
    dk_head, dk_n, dv_head, dv_n, d_bias_ptr = results
    SHARED: gl.constexpr = dk_head.dtype.element_ty == gl.float32
    k_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    v_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // E, E // 8], [4, 1], [1, 0])
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE_QUERIES, 16])
    dk_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    dv_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, E, 16])
    ds_layout: gl.constexpr = gl.DotOperandLayout(0, dk_layout, 2)
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, dv_layout, 2)
    of_keys: gl.constexpr = gl.SliceLayout(1, s_layout)
    of_queries: gl.constexpr = gl.SliceLayout(0, s_layout)

    # This group's keys: when they live, their rows in shared memory, and the tiles [mine_from, mine_to) they need.
    slot_s = pair.slot0 + HALF * GROUP_KEYS + gl.arange(0, GROUP_KEYS, layout=of_keys)
    j_s, expiry_s, mine_from, mine_to = lifetimes(order_ptr, expiry_ptr, slot_s, N)
    mine_from, mine_to = gl.minimum(mine_from, pair.last), gl.where(mine_from < mine_to, mine_to, pair.last)
    ever_s = expiry_s > j_s
    unmasked_from = gl.cdiv(gl.max(gl.where(ever_s, j_s, 0), 0), TILE_QUERIES)
    unmasked_to = gl.min(gl.where(ever_s, expiry_s, N), 0) // TILE_QUERIES
    bias_s = gl.zeros((GROUP_KEYS,), gl.float32, layout=of_keys)
    if bias_ptr is not None:
        bias_s = gl.load(bias_ptr + j_s, mask=slot_s < N, other=0.0).to(gl.float32) * LOG2_E
    column_d = gl.arange(0, D, layout=gl.SliceLayout(0, k_layout))
    column_e = gl.arange(0, E, layout=gl.SliceLayout(0, v_layout))
    j_of_k_s = gl.convert_layout(j_s, gl.SliceLayout(1, k_layout)).to(gl.int64)
    j_of_v_s = gl.convert_layout(j_s, gl.SliceLayout(1, v_layout)).to(gl.int64)
    k_tile, v_tile = k_halves.index(HALF), v_halves.index(HALF)
    k_tile.store(gl.load(k_head + (j_of_k_s * k_n)[:, None] + column_d[None, :]))
    v_tile.store(gl.load(v_head + (j_of_v_s * v_n)[:, None] + column_e[None, :]))
    fence_async_shared()
    thread_barrier()

    # Tile by tile: this one's weights and gradients beside the last one's products. Those start from zeros.
    nothing_sa = gl.zeros((GROUP_KEYS, TILE_QUERIES), gl.float32, layout=s_layout)
    dk_sd = gl.zeros((GROUP_KEYS, D), gl.float32, layout=dk_layout)
    dv_se = gl.zeros((GROUP_KEYS, E), gl.float32, layout=dv_layout)
    p_sa = gl.zeros((GROUP_KEYS, TILE_QUERIES), ring.q.dtype, layout=weights_layout)
    ds_sa = gl.zeros((GROUP_KEYS, TILE_QUERIES), ring.q.dtype, layout=ds_layout)
    d_bias_s4 = sum_within_threads(nothing_sa)
    scale_log2 = scale * LOG2_E
    pass_on(pair.first, mine_from, pair.first, ring, C.STAGES)
    stage = (mine_from - pair.first) % C.STAGES
    for tile in range(mine_from, mine_to):
        before = stage
        stage = await_tile(ring, tile - pair.first, C.STAGES)
        q_tile, do_tile = ring.q.index(stage), ring.d_out.index(stage)
        s_sa = warpgroup_mma(k_tile, q_tile.permute((1, 0)), nothing_sa, use_acc=False, is_async=True)
        dp_sa = warpgroup_mma(v_tile, do_tile.permute((1, 0)), nothing_sa, use_acc=False, is_async=True)
        dv_se = warpgroup_mma(p_sa, ring.d_out.index(before), dv_se, is_async=True)
        dk_sd = warpgroup_mma(ds_sa, ring.q.index(before), dk_sd, is_async=True)
        s_sa, dp_sa = warpgroup_mma_wait(2, deps=[s_sa, dp_sa])
        weights_sa = gl.exp2(s_sa * scale_log2 + bias_s[:, None] - ring.lse.index(stage).load(of_queries)[None, :])
        if (tile < unmasked_from) | (tile >= unmasked_to):
            t_a = tile * TILE_QUERIES + gl.arange(0, TILE_QUERIES, layout=of_queries)
            live_sa = (j_s[:, None] <= t_a[None, :]) & (t_a[None, :] < expiry_s[:, None])
            weights_sa = gl.where(live_sa, weights_sa, 0.0)
        d_logits_sa = weights_sa * (dp_sa - ring.delta.index(stage).load(of_queries)[None, :])
        d_bias_s4 += sum_within_threads(d_logits_sa)
        dv_se, dk_sd, p_sa, ds_sa = warpgroup_mma_wait(0, deps=[dv_se, dk_sd, p_sa, ds_sa])
        if tile > mine_from:
            release(ring, before)
        p_sa = gl.convert_layout(weights_sa.to(ring.q.dtype), weights_layout)
        ds_sa = gl.convert_layout(d_logits_sa.to(ring.q.dtype), ds_layout)
    if mine_from < mine_to:
        dv_se = warpgroup_mma(p_sa, ring.d_out.index(stage), dv_se, is_async=True)
        dk_sd = warpgroup_mma(ds_sa, ring.q.index(stage), dk_sd, is_async=True)
        dv_se, dk_sd, p_sa, ds_sa = warpgroup_mma_wait(0, deps=[dv_se, dk_sd, p_sa, ds_sa])
        release(ring, stage)
    pass_on(mine_to, pair.last, pair.first, ring, C.STAGES)

    d_bias_s = gl.convert_layout(gl.sum(d_bias_s4, 1), of_keys)
    gl.store(d_bias_ptr + j_s, gl.where(ever_s, d_bias_s, 0.0), mask=slot_s < N)
    if SHARED:  # as the products lie: a quad's float32 fill a sector. Sums over heads read no key that never lives
        ever_k_s = gl.convert_layout(ever_s, gl.SliceLayout(1, dk_layout))
        ever_v_s = gl.convert_layout(ever_s, gl.SliceLayout(1, dv_layout))
        row_k_s = gl.convert_layout(j_s, gl.SliceLayout(1, dk_layout)).to(gl.int64) * dk_n
        row_v_s = gl.convert_layout(j_s, gl.SliceLayout(1, dv_layout)).to(gl.int64) * dv_n
        place_k = row_k_s[:, None] + gl.arange(0, D, layout=gl.SliceLayout(0, dk_layout))[None, :]
        place_v = row_v_s[:, None] + gl.arange(0, E, layout=gl.SliceLayout(0, dv_layout))[None, :]
        gl.store(dk_head + place_k, dk_sd * scale, mask=ever_k_s[:, None])
        gl.store(dv_head + place_v, dv_se, mask=ever_v_s[:, None])
    else:
        ever_k_s = gl.convert_layout(ever_s, gl.SliceLayout(1, k_layout))
        ever_v_s = gl.convert_layout(ever_s, gl.SliceLayout(1, v_layout))
        slot_k_s = pair.slot0 + HALF * GROUP_KEYS + gl.arange(0, GROUP_KEYS, layout=gl.SliceLayout(1, k_layout))
        slot_v_s = pair.slot0 + HALF * GROUP_KEYS + gl.arange(0, GROUP_KEYS, layout=gl.SliceLayout(1, v_layout))
        dk_out = gl.convert_layout((dk_sd * scale).to(dk_head.dtype.element_ty), k_layout)
        dv_out = gl.convert_layout(dv_se.to(dv_head.dtype.element_ty), v_layout)
        dk_out = gl.where(ever_k_s[:, None], dk_out, gl.zeros_like(dk_out))
        dv_out = gl.where(ever_v_s[:, None], dv_out, gl.zeros_like(dv_out))
        gl.store(dk_head + (j_of_k_s * dk_n)[:, None] + column_d[None, :], dk_out, mask=(slot_k_s < N)[:, None])
        gl.store(dv_head + (j_of_v_s * dv_n)[:, None] + column_e[None, :], dv_out, mask=(slot_v_s < N)[:, None])


@gluon.jit
def store_nothing(order_ptr, slot0, dk_head, dk_n, dv_head, dv_n, d_bias_ptr, N, C: gl.constexpr):
    """The gradients of keys none of which ever lives."""
    D: gl.constexpr = C.D
    E: gl.constexpr = C.E
    k_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    v_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // E, E // 8], [4, 1], [1, 0])
    slot_k_s = slot0 + gl.arange(0, 2 * GROUP_KEYS, layout=gl.SliceLayout(1, k_layout))
    slot_v_s = slot0 + gl.arange(0, 2 * GROUP_KEYS, layout=gl.SliceLayout(1, v_layout))
    j_of_k_s = gl.load(order_ptr + slot_k_s, mask=slot_k_s < N, other=0).to(gl.int64)
    j_of_v_s = gl.load(order_ptr + slot_v_s, mask=slot_v_s < N, other=0).to(gl.int64)
    column_d = gl.arange(0, D, layout=gl.SliceLayout(0, k_layout))
    column_e = gl.arange(0, E, layout=gl.SliceLayout(0, v_layout))
    zeros_sd = gl.zeros((2 * GROUP_KEYS, D), dk_head.dtype.element_ty, layout=k_layout)
    zeros_se = gl.zeros((2 * GROUP_KEYS, E), dv_head.dtype.element_ty, layout=v_layout)
    gl.store(dk_head + (j_of_k_s * dk_n)[:, None] + column_d[None, :], zeros_sd, mask=(slot_k_s < N)[:, None])
    gl.store(dv_head + (j_of_v_s * dv_n)[:, None] + column_e[None, :], zeros_se, mask=(slot_v_s < N)[:, None])
    gl.store(d_bias_ptr + j_of_k_s, gl.zeros_like(j_of_k_s).to(gl.float32), mask=slot_k_s < N)
