"""An order of the keys in which neighbours live at about the same time: what the backward pass in keys goes by."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.key_lists import CHUNK, count_ever_live_kernel


def bucket_size(N: int) -> int:
    """Keys, in order of arrival, that ``backward_key_order`` sorts by expiry together."""
    return 512 if N <= 16_384 else 1024


def backward_key_order(expiry: Tensor) -> Tensor:
    """A permutation of the keys, int32 (B*K, N): keys that ever live before those that never do, and neighbours with
    lifetimes that overlap.

    Keys are cut into buckets of equal size by arrival and sorted by expiry within a bucket, longest-lived first. Groups
    of 64 neighbours then span 1.03 (sliding window) to 1.4 (drifting scores) times the live pairs; by expiry alone it
    was 2 to 3, by arrival alone 2 to 3 times.
    """
    B, K, N = expiry.shape
    rows, chunks, bucket = B * K, triton.cdiv(N, CHUNK), bucket_size(N)
    ever_rc = torch.empty(rows, chunks, dtype=torch.int32, device=expiry.device)
    by_arrival_rn = torch.empty(rows, N, dtype=torch.int32, device=expiry.device)
    order_rn = torch.empty_like(by_arrival_rn)
    count_ever_live_kernel[(chunks, rows)](expiry, ever_rc, N, CHUNK)
    _order_by_arrival_kernel[(chunks, rows)](
        expiry, ever_rc, by_arrival_rn, N, chunks, CHUNK, triton.next_power_of_2(chunks)
    )
    _sort_buckets_kernel[(triton.cdiv(N, bucket), rows)](
        expiry, ever_rc, by_arrival_rn, order_rn, N, chunks, bucket, triton.next_power_of_2(chunks)
    )
    return order_rn


@triton.jit
def _order_by_arrival_kernel(expiry_ptr, ever_ptr, order_ptr, N, chunks, CHUNK: tl.constexpr, MAX_CHUNKS: tl.constexpr):
    """Keys that ever live, then keys that never do, both in order of arrival."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.arange(0, MAX_CHUNKS)
    ever_c = tl.load(ever_ptr + row * chunks + c, mask=c < chunks, other=0)
    ever_before = tl.sum(tl.where(c < chunk, ever_c, 0), 0)
    never_from = tl.sum(ever_c, 0) + chunk * CHUNK - ever_before
    i = tl.arange(0, CHUNK)
    j = chunk * CHUNK + i
    ever = (tl.load(expiry_ptr + row * N + j, mask=j < N, other=0) > j).to(tl.int32)
    ever_rank = tl.cumsum(ever, 0) - ever
    slot = tl.where(ever != 0, ever_before + ever_rank, never_from + i - ever_rank)
    tl.store(order_ptr + row * N + slot, j, mask=j < N)


@triton.jit
def _sort_buckets_kernel(
    expiry_ptr, ever_ptr, by_arrival_ptr, order_ptr, N, chunks, BUCKET: tl.constexpr, MAX_CHUNKS: tl.constexpr
):
    bucket, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    slot = bucket * BUCKET + tl.arange(0, BUCKET)
    j = tl.load(by_arrival_ptr + row * N + slot, mask=slot < N, other=0)
    c = tl.arange(0, MAX_CHUNKS)
    ever_live = tl.sum(tl.load(ever_ptr + row * chunks + c, mask=c < chunks, other=0), 0)
    if bucket * BUCKET < ever_live:
        expiry = tl.load(expiry_ptr + row * N + j, mask=slot < N, other=0)
        # Descending: those that never live (0) near the end, slots past the last key (-1) behind them.
        rank = tl.where(slot < N, tl.where(expiry > j, expiry, 0), -1)
        packed = tl.sort((rank.to(tl.int64) << 32) | j.to(tl.int64), descending=True)
        j = (packed & 0xFFFFFFFF).to(tl.int32)
    tl.store(order_ptr + row * N + slot, j, mask=slot < N)
