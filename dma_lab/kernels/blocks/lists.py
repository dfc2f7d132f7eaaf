"""Which queries chose a block: for every key/value head one list of queries, ordered by the block that they chose.

Made by counting, so that every result is the same on every run, and in shapes that depend on N alone.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.sizes import cdiv

_CHUNK = 64  # queries that a program counts or places
_WINDOWS = 32  # at a time


class QueryLists(NamedTuple):
    """Of all key/value heads."""

    place_rl: Tensor
    """int32 (R, N * S): ``t * S + s`` where query t chose a block in slot s, by block and, in a block, by query."""
    length_r: Tensor
    """int32 (R,): how many there are; the others are undefined."""


def build_query_lists(chosen: Tensor, block: int) -> QueryLists:
    """``chosen`` as in ``selected_attention``, contiguous.

    Blocks are told apart by the window of ``block`` positions that they begin in. Several documents' may begin in one:
    their queries then follow each other, as the documents do.
    """
    B, K, N, S = chosen.shape
    R, chunks, windows = B * K, cdiv(N, _CHUNK), cdiv(N, block)
    count_rux = torch.zeros(R, windows, chunks, dtype=torch.int32, device=chosen.device)
    _count_kernel[(chunks, R)](chosen, count_rux, N, windows, block, S, _CHUNK, _WINDOWS)
    before_rux = count_rux.cumsum(-1, dtype=torch.int32)
    total_ru = before_rux[..., -1]
    first_ru = total_ru.cumsum(-1, dtype=torch.int32)
    length_r = total_ru.sum(-1, dtype=torch.int32)
    before_rux = before_rux - count_rux + (first_ru - total_ru)[..., None]
    place_rl = torch.empty(R, N * S, dtype=torch.int32, device=chosen.device)
    _place_kernel[(chunks, R)](chosen, before_rux, place_rl, N, windows, block, S, _CHUNK, _WINDOWS)
    return QueryLists(place_rl, length_r)


@triton.jit
def _slots(chosen, t_q, window_u, N, BLOCK: tl.constexpr, S: tl.constexpr):
    """(queries, windows): the slot of the block that the query chose and that begins in the window, or -1."""
    slot_qu = tl.full((t_q.shape[0], window_u.shape[0]), -1, tl.int32)
    for s in range(S):
        begin_q = tl.load(chosen + t_q * S + s, mask=t_q < N, other=-1)
        window_q = tl.where(begin_q >= 0, begin_q // BLOCK, -1)
        slot_qu = tl.where(window_q[:, None] == window_u[None, :], s, slot_qu)
    return slot_qu


@triton.jit
def _count_kernel(
    chosen_ptr, count_ptr, N, windows,
    BLOCK: tl.constexpr, S: tl.constexpr, CHUNK: tl.constexpr, WINDOWS: tl.constexpr,
):  # fmt: skip
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    t_q = chunk * CHUNK + tl.arange(0, CHUNK)
    for first in range(0, tl.minimum(chunk * CHUNK + CHUNK, N), BLOCK * WINDOWS):
        window_u = first // BLOCK + tl.arange(0, WINDOWS)
        slot_qu = _slots(chosen_ptr + row * N * S, t_q, window_u, N, BLOCK, S)
        count_u = tl.sum((slot_qu >= 0).to(tl.int32), 0)
        tl.store(count_ptr + (row * windows + window_u) * tl.num_programs(0) + chunk, count_u, mask=window_u < windows)


@triton.jit
def _place_kernel(
    chosen_ptr, before_ptr, place_ptr, N, windows,
    BLOCK: tl.constexpr, S: tl.constexpr, CHUNK: tl.constexpr, WINDOWS: tl.constexpr,
):  # fmt: skip
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    t_q = chunk * CHUNK + tl.arange(0, CHUNK)
    for first in range(0, tl.minimum(chunk * CHUNK + CHUNK, N), BLOCK * WINDOWS):
        window_u = first // BLOCK + tl.arange(0, WINDOWS)
        slot_qu = _slots(chosen_ptr + row * N * S, t_q, window_u, N, BLOCK, S)
        chose_qu = (slot_qu >= 0).to(tl.int32)
        before_u = tl.load(
            before_ptr + (row * windows + window_u) * tl.num_programs(0) + chunk, mask=window_u < windows, other=0
        )
        listed_qu = before_u[None, :] + tl.cumsum(chose_qu, 0) - chose_qu
        tl.store(place_ptr + row * N * S + listed_qu, t_q[:, None] * S + slot_qu, mask=slot_qu >= 0)
