"""Ranks of scores within their rows, on the GPU.

Short rows are cut into runs that are sorted side by side; a key's rank is then its place in its run and, for every
other run, how many keys of that lie below it. A library's sort of so few keys is a dozen launches one after another.
Long rows, and float64, are sorted by PyTorch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.sizes import cdiv, next_power_of_2

_LONGEST = tl.constexpr(2**15)  # row that is ranked here: start of document, score and position share 62 bits
_LAST = tl.constexpr(2**63 - 1)  # above every key
_BLOCK = 128  # keys that a program ranks


def rank_scores(scores_rn: Tensor, start_rn: Tensor | None) -> tuple[Tensor, Tensor]:
    """Two permutations, int32 (R, N): the rank of each position, lowest score first, and the position of each rank.

    Of equal scores the later one ranks higher. Given ``start_rn``, integers (R, N), the first position of each
    position's document, keys of a later document rank above all of an earlier one.
    """
    R, N = scores_rn.shape
    rank_rn, position_rn = (scores_rn.new_empty(R, N, dtype=torch.int32) for _ in range(2))
    if N > _LONGEST.value or scores_rn.dtype == torch.float64:
        order_rn = scores_rn.argsort(dim=-1, stable=True)
        if start_rn is not None:  # a second stable sort keeps each document's own order
            order_rn = order_rn.gather(1, start_rn.gather(1, order_rn).argsort(dim=-1, stable=True))
        _invert_kernel[(cdiv(N, 1024), R)](order_rn, rank_rn, position_rn, N, BLOCK=1024)
        return rank_rn, position_rn
    run = min(max(_BLOCK, next_power_of_2(N)), 1024 if N <= 8192 else 2048)
    runs = cdiv(N, run)
    key_rp = scores_rn.new_empty(R, runs * run, dtype=torch.int64)
    starts = None if start_rn is None else start_rn.contiguous()
    _sort_runs_kernel[(runs, R)](scores_rn.contiguous(), starts, key_rp, N, run, num_warps=run // 128)
    _rank_kernel[(runs * run // _BLOCK, R)](
        key_rp, rank_rn, position_rn, N, runs, RUN=run, HALVINGS=run.bit_length() - 1, BLOCK=_BLOCK
    )
    return rank_rn, position_rn


@triton.jit
def _invert_kernel(order_ptr, rank_ptr, position_ptr, N, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64) * N
    rank = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    position = tl.load(order_ptr + row + rank, mask=rank < N, other=0).to(tl.int32)
    tl.store(position_ptr + row + rank, position, mask=rank < N)
    tl.store(rank_ptr + row + position, rank, mask=rank < N)


@triton.jit
def _sort_runs_kernel(score_ptr, start_ptr, key_ptr, N, RUN: tl.constexpr):
    """Keys that compare as (document, score, position) do, ascending within each run; what lies past the row last."""
    row = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * RUN + tl.arange(0, RUN)
    inside = position < N
    score = tl.load(score_ptr + row * N + position, mask=inside, other=0.0).to(tl.float32)
    score = tl.where(score == 0, 0.0, score)  # zeros of either sign are equal
    bits = tl.where(score == score, score.to(tl.int32, bitcast=True), 0x7FFFFFFF)  # NaN above all, as in PyTorch
    high = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2**31
    if start_ptr is not None:
        high += tl.load(start_ptr + row * N + position, mask=inside, other=0).to(tl.int64) << 32
    key = tl.sort(tl.where(inside, high * _LONGEST + position, _LAST))
    tl.store(key_ptr + row * tl.num_programs(0) * RUN + position, key)


@triton.jit
def _rank_kernel(
    key_ptr, rank_ptr, position_ptr, N, runs, RUN: tl.constexpr, HALVINGS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(1).to(tl.int64)
    key_ptr += row * runs * RUN
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = tl.program_id(0) * BLOCK // RUN
    key = tl.load(key_ptr + place)
    rank = place - mine * RUN
    for run in range(runs):
        if run != mine:
            run_ptr = key_ptr + run * RUN
            below = tl.zeros((BLOCK,), tl.int32)
            for halving in tl.static_range(HALVINGS):  # how many of the run's first RUN - 1 keys are lower
                middle = tl.load(run_ptr + below + (RUN >> (halving + 1)) - 1)
                below += tl.where(middle < key, RUN >> (halving + 1), 0)
            rank += below + (tl.load(run_ptr + below) < key).to(tl.int32)
    inside = key < _LAST
    position = (key % _LONGEST).to(tl.int32)
    tl.store(rank_ptr + row * N + position, rank, mask=inside)
    tl.store(position_ptr + row * N + rank, position, mask=inside)
