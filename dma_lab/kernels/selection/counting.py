"""Key lifetimes on the GPU: ranks, then counting on two levels instead of log2 N.

Given every key's rank, three kernels: count ranks below each chunk boundary by bucket of ranks; find the boundary's
threshold in its bucket; and, chunk by chunk, find the query at which each key that leaves there does. Exact, O(N · C).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.selection.ranks import rank_scores
from dma_lab.kernels.sizes import cdiv, next_power_of_2

_RANKS = 128  # that a program looks at together
_COUNTED = tl.constexpr(1024)  # ranks, where it only counts
_SHARES = 4  # programs that share a chunk: the first chunks past the window have most keys leaving


class _Order(NamedTuple):
    """Two permutations (R, N): the rank of each position, and the position of each rank."""

    rank: Tensor
    position: Tensor


class _Entries(NamedTuple):
    """The keys of each chunk that rank above the threshold at its opening, listed from where the chunk begins."""

    arrival: Tensor
    rank: Tensor
    length: Tensor
    """(R, chunks + 1)"""


@torch.library.custom_op("dma_lab::expiry_from_scores", mutates_args=())
def expiry_from_scores(
    scores_rn: Tensor, window: int, recent: int, start_rn: Tensor | None, end_rn: Tensor | None
) -> Tensor:
    """Expiries of scores (R, N), int32 (R, N); ``window`` and ``recent`` as in ``prefix_topk_expiry``.

    ``start_rn`` and ``end_rn``, int32 (R, N), are where each position's document starts and ends; None for one
    document.
    """
    R, N = scores_rn.shape
    # Table entries are N / chunk * N / bucket per row: both sizes grow with N beyond 131,072.
    chunk = max(128, next_power_of_2(N) // 1024)
    bucket = max(256, next_power_of_2(N) // 128)
    chunks, buckets = cdiv(N, chunk), cdiv(N, bucket)

    def new(*shape: int) -> Tensor:
        return scores_rn.new_empty(shape, dtype=torch.int32)

    below_rux, threshold_rx = new(R, buckets, chunks), new(R, chunks + 1)
    entries = _Entries(new(R, N), new(R, N), new(R, chunks + 1))
    expiry_rn = new(R, N)
    most_chunks, most_buckets = next_power_of_2(chunks), next_power_of_2(buckets)
    with torch.cuda.device_of(scores_rn):
        order = _Order(*rank_scores(scores_rn, start_rn))
        _count_kernel[(buckets, R)](order.position, below_rux, N, chunks, chunk, bucket, most_chunks)
        _threshold_kernel[(chunks + 1, R)](
            order, below_rux, threshold_rx, entries, N, window, chunks, buckets, chunk, bucket, most_buckets
        )
        _expiry_kernel[(R, chunks * _SHARES)](
            order, threshold_rx, entries, end_rn, expiry_rn, N, window, recent, chunks,
            chunk, _RANKS, _SHARES, num_warps=_RANKS // 32,
        )  # fmt: skip
    return expiry_rn


@expiry_from_scores.register_fake
def _(scores_rn: Tensor, window: int, recent: int, start_rn: Tensor | None, end_rn: Tensor | None) -> Tensor:
    return scores_rn.new_empty(scores_rn.shape, dtype=torch.int32)


@triton.jit
def _count_kernel(
    position_ptr, below_ptr, N, chunks, CHUNK: tl.constexpr, BUCKET: tl.constexpr, MAX_CHUNKS: tl.constexpr
):
    """below[u, x]: keys of bucket u that arrive in chunks 0..x."""
    u, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rank = u * BUCKET + tl.arange(0, BUCKET)
    inside = rank < N
    position = tl.load(position_ptr + row * N + rank, mask=inside, other=0)
    count = tl.histogram(position // CHUNK, MAX_CHUNKS, mask=inside)
    x = tl.arange(0, MAX_CHUNKS)
    tl.store(below_ptr + (row * tl.num_programs(0) + u) * chunks + x, tl.cumsum(count, 0), mask=x < chunks)


@triton.jit
def _threshold_kernel(
    order, below_ptr, threshold_ptr, entries, N, window, chunks, buckets,
    CHUNK: tl.constexpr, BUCKET: tl.constexpr, MAX_BUCKETS: tl.constexpr,
):  # fmt: skip
    """threshold[x]: the window-th largest rank among the keys before chunk x; 0 while there are fewer.

    Lists which keys of the chunk rank above it, and their ranks: no other can make a live key leave.
    """
    x, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    boundary = tl.minimum(x * CHUNK, N)
    threshold = 0
    if boundary >= window:
        u = tl.arange(0, MAX_BUCKETS)
        count = tl.load(below_ptr + (row * buckets + u) * chunks + x - 1, mask=u < buckets, other=0)
        from_here_up = tl.cumsum(count, 0, reverse=True)
        # Counts fall with u: the bucket is the last one from which at least `window` keys lie.
        bucket = tl.sum((from_here_up >= window).to(tl.int32), 0) - 1
        above = tl.sum(tl.where(u > bucket, count, 0), 0)
        rank = bucket * BUCKET + tl.arange(0, BUCKET)
        position = tl.load(order.position + row * N + rank, mask=rank < N, other=N)
        from_rank_up = above + tl.cumsum((position < boundary).to(tl.int32), 0, reverse=True)
        threshold = bucket * BUCKET + tl.sum((from_rank_up >= window).to(tl.int32), 0) - 1
    tl.store(threshold_ptr + row * (chunks + 1) + x, threshold)
    arrival = boundary + tl.arange(0, CHUNK)
    rank = tl.load(order.rank + row * N + arrival, mask=arrival < N, other=-1)
    enters = (rank > threshold).to(tl.int32)
    place = row * N + boundary + tl.cumsum(enters, 0) - enters
    tl.store(entries.arrival + place, arrival, mask=enters != 0)
    tl.store(entries.rank + place, rank, mask=enters != 0)
    tl.store(entries.length + row * (chunks + 1) + x, tl.sum(enters, 0))


@triton.jit
def _store_expiry(expiry_ptr, end_ptr, offset, position, expiry, recent, N, mask):
    end = N
    if end_ptr is not None:
        end = tl.load(end_ptr + offset + position, mask=mask, other=0)
    expiry = tl.maximum(tl.minimum(expiry, end), position)
    expiry = tl.maximum(expiry, tl.minimum(position + recent, end))
    tl.store(expiry_ptr + offset + position, expiry, mask=mask)


@triton.jit
def _expiry_kernel(
    order, threshold_ptr, entries, end_ptr, expiry_ptr, N, window, recent, chunks,
    CHUNK: tl.constexpr, RANKS: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """Expiry of the keys that leave in a chunk, and of the chunk's own that leave at once or never.

    The keys that leave in the chunk are those ranked between its two thresholds, if they have arrived. Each leaves at
    the k-th better arrival of the chunk, k being how many places the live keys below it and the free ones make.
    """
    row = tl.program_id(0).to(tl.int64)
    chunk, share = tl.program_id(1) // SHARES, tl.program_id(1) % SHARES
    offset = row * N
    t0 = chunk * CHUNK
    t1 = tl.minimum(t0 + CHUNK, N)
    threshold_ptr += row * (chunks + 1)
    low = tl.load(threshold_ptr + chunk)
    high = tl.load(threshold_ptr + chunk + 1)
    if share == 0:
        last = tl.load(threshold_ptr + chunks)
        arrival = t0 + tl.arange(0, CHUNK)
        rank = tl.load(order.rank + offset + arrival, mask=arrival < t1, other=0)
        never = rank < low
        expiry = tl.where(never, arrival, N)
        stays = (arrival < t1) & (never | (rank >= last))
        _store_expiry(expiry_ptr, end_ptr, offset, arrival, expiry, recent, N, stays)

    a_share = tl.cdiv(tl.cdiv(high - low, RANKS), SHARES) * RANKS
    share_low = low + share * a_share
    share_high = tl.minimum(share_low + a_share, high)
    live_below = tl.maximum(window - t0, 0)  # places that are free count like keys that leave before
    if share_low < share_high:
        for start in range(low, share_low, _COUNTED):
            rank = start + tl.arange(0, _COUNTED)
            position = tl.load(order.position + offset + rank, mask=rank < share_low, other=N)
            live_below += tl.sum((position < t0).to(tl.int32), 0)
        listed = tl.load(entries.length + row * (chunks + 1) + chunk)
        for start in range(share_low, share_high, RANKS):
            rank = start + tl.arange(0, RANKS)
            position = tl.load(order.position + offset + rank, mask=rank < share_high, other=N)
            old = (position < t0).to(tl.int32)
            k = live_below + tl.cumsum(old, 0)  # its own place counts where it was live before the chunk
            better = tl.zeros((RANKS,), tl.int32)
            before = tl.zeros((RANKS,), tl.int32)
            for entry in tl.range(listed, loop_unroll_factor=8):
                better += (tl.load(entries.rank + offset + t0 + entry) > rank).to(tl.int32)
                before += (better < k).to(tl.int32)
            leaves = tl.load(entries.arrival + offset + t0 + before, mask=before < listed, other=N)
            _store_expiry(expiry_ptr, end_ptr, offset, position, leaves, recent, N, position < t1)
            live_below += tl.sum(old, 0)
