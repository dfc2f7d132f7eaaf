"""An order of the keys in which neighbours live at about the same time: what the backward pass in keys goes by."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.interval.key_lists import KeyLists
from dma_lab.kernels.sizes import cdiv, next_power_of_2

_SHORT = 16_384  # tokens


def bucket_size(N: int) -> int:
    """Keys, in order of arrival, that ``backward_key_order`` sorts by expiry together."""
    return 512 if N <= _SHORT else 1024


def rows_abreast(N: int) -> int:
    """Rows whose groups of keys the backward pass takes side by side: see ``group_of_program``."""
    return 16 if N <= _SHORT else 1


def backward_key_order(expiry: Tensor, lists: KeyLists) -> Tensor:
    """A permutation of the keys, int32 (B*K, N): keys that ever live before those that never do, and neighbours with
    lifetimes that overlap.

    Keys are cut into buckets of equal size by arrival and sorted by expiry within a bucket, longest-lived first. Groups
    of 64 neighbours then span 1.03 (sliding window) to 1.4 (drifting scores) times the live pairs; by expiry alone it
    was 2 to 3, by arrival alone 2 to 3 times.
    """
    B, K, N = expiry.shape
    chunks, bucket = lists.ever_rx.shape[1], bucket_size(N)
    order_rn = torch.empty_like(lists.by_arrival_rn)
    sorted_type = tl.int32 if N < 2**31 // bucket - 1 else tl.int64
    _sort_buckets_kernel[(cdiv(N, bucket), B * K)](
        expiry, lists.ever_rx, lists.by_arrival_rn, order_rn, N, chunks,
        bucket, next_power_of_2(chunks), sorted_type, num_warps=8,
    )  # fmt: skip
    return order_rn


@triton.jit
def group_of_program(program, rows, GROUPS: tl.constexpr, ABREAST: tl.constexpr):
    """Row and group of keys (GROUPS to a bucket of the order) that a program of the backward pass takes.

    A bucket's groups of all rows, then the next bucket's: early keys, which live longest, come first. A row's groups
    start near one query and walk on together, so in long contexts they go side by side and share what they read. In
    short ones, which all but fit the cache, a launch ends sooner if the longest groups of ABREAST rows go first.
    """
    bucket = program // (GROUPS * rows)
    place = program % (GROUPS * rows)
    first = place // (GROUPS * ABREAST) * ABREAST
    abreast = tl.minimum(rows - first, ABREAST)
    place -= first * GROUPS
    return first + place % abreast, bucket * GROUPS + place // abreast


@triton.jit
def _sort_buckets_kernel(
    expiry_ptr, ever_ptr, by_arrival_ptr, order_ptr, N, chunks,
    BUCKET: tl.constexpr, MAX_CHUNKS: tl.constexpr, SORTED_TYPE: tl.constexpr,
):  # fmt: skip
    bucket, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    by_arrival_ptr += row * N + bucket * BUCKET
    place = tl.arange(0, BUCKET)
    inside = bucket * BUCKET + place < N
    j = tl.load(by_arrival_ptr + place, mask=inside, other=0)
    x = tl.arange(0, MAX_CHUNKS)
    ever_live = tl.sum(tl.load(ever_ptr + row * chunks + x, mask=x < chunks, other=0), 0)
    if bucket * BUCKET < ever_live:
        expiry = tl.load(expiry_ptr + row * N + j, mask=inside, other=0)
        # Descending: those that never live near the end, places past the last key behind them; the rest by expiry.
        rank = tl.where(inside, 1 + tl.where(expiry > j, expiry, 0), 0)
        ranked = tl.sort(rank.to(SORTED_TYPE) * BUCKET + place, descending=True)
        j = tl.load(by_arrival_ptr + (ranked % BUCKET).to(tl.int32), mask=inside, other=0)
    tl.store(order_ptr + row * N + bucket * BUCKET + place, j, mask=inside)
