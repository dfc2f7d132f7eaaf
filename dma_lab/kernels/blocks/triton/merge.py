"""What a query got from the blocks that it chose, a part per slot, made one: in the order of its slots, always."""

import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.blocks.arguments import Sizes
from dma_lab.kernels.interval.arguments import heads_of
from dma_lab.kernels.interval.tiling import padded
from dma_lab.kernels.interval.triton.tiles import query_ptrs, row_ptrs, within
from dma_lab.kernels.sizes import cdiv

_QUERIES = 16  # that a program merges
_AHEAD = 8  # slots whose parts are loaded at once


def merge_parts(part: Tensor, part_lse: Tensor, chosen: Tensor, out: Tensor, lse: Tensor, sizes: Sizes) -> None:
    """Softmax over all blocks: ``part`` (rows, N * S, group, D) and the base-2 logarithms of their sums."""
    _launch(_merge_kernel, part, part_lse, chosen, out, lse, sizes)


def add_parts(part: Tensor, chosen: Tensor, total: Tensor, sizes: Sizes) -> None:
    """``total`` (B, H, N, D), the sum of ``part`` (rows, N * S, group, D) over slots times ``scale``."""
    _launch(_add_kernel, part, None, chosen, total, None, sizes)


def _launch(
    kernel: triton.JITFunction, part: Tensor, part_lse: Tensor | None, chosen: Tensor, total: Tensor,
    lse: Tensor | None, sizes: Sizes,
) -> None:  # fmt: skip
    D = part.shape[-1]
    grid = cdiv(sizes.N, _QUERIES), part.shape[0] * sizes.group_size
    kernel[grid](
        part, part_lse, chosen, *heads_of(total), lse, sizes,
        D=D, D_PAD=padded(D), S=chosen.shape[-1], QUERIES=_QUERIES, AHEAD=_AHEAD,
    )  # fmt: skip


@triton.jit
def _slots_of_program(chosen_ptr, sizes, S: tl.constexpr, QUERIES: tl.constexpr):
    """Batch entry, query head, queries, their choices, and the index of the part in their first slot."""
    local_row = (tl.program_id(1) // sizes.group_size).to(tl.int64)
    head_in_group = tl.program_id(1) % sizes.group_size
    row = sizes.first_row + local_row
    t_q = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    head = row % sizes.K * sizes.group_size + head_in_group
    first_q = (local_row * sizes.N + t_q) * S * sizes.group_size + head_in_group
    return row // sizes.K, head, t_q, chosen_ptr + (row * sizes.N + t_q) * S, first_q


@triton.jit
def _part_of_slot(part_ptr, chosen_q, first_q, t_q, s, sizes, D, D_PAD: tl.constexpr, S: tl.constexpr):
    """(queries, D_PAD) parts in a slot, zeros where nothing was chosen; and where something was."""
    chose_q = tl.load(chosen_q + s, mask=(t_q < sizes.N) & (s + tl.zeros_like(t_q) < S), other=-1) >= 0
    rows = row_ptrs(part_ptr, first_q + s * sizes.group_size, D, D_PAD)
    return tl.load(rows, mask=within(chose_q, D, D_PAD), other=0.0).to(tl.float32), chose_q


@triton.jit
def _merge_kernel(
    part_ptr, part_lse_ptr, chosen_ptr, out, lse_ptr, sizes,
    D: tl.constexpr, D_PAD: tl.constexpr, S: tl.constexpr, QUERIES: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    b, head, t_q, chosen_q, first_q = _slots_of_program(chosen_ptr, sizes, S, QUERIES)
    max_q = tl.full((QUERIES,), float("-inf"), tl.float32)
    for s in range(S):
        chose_q = tl.load(chosen_q + s, mask=t_q < sizes.N, other=-1) >= 0
        lse_q = tl.load(part_lse_ptr + first_q + s * sizes.group_size, mask=chose_q, other=float("-inf"))
        max_q = tl.maximum(max_q, lse_q)
    max_q = tl.where(t_q < sizes.N, max_q, 0.0)
    sum_q = tl.zeros((QUERIES,), tl.float32)
    acc_qd = tl.zeros((QUERIES, D_PAD), tl.float32)
    for s0 in range(0, S, AHEAD):
        for ahead in tl.static_range(AHEAD):
            s = s0 + ahead
            part_qd, chose_q = _part_of_slot(part_ptr, chosen_q, first_q, t_q, s, sizes, D, D_PAD, S)
            lse_q = tl.load(part_lse_ptr + first_q + s * sizes.group_size, mask=chose_q, other=float("-inf"))
            weight_q = tl.exp2(lse_q - max_q)
            sum_q += weight_q
            acc_qd += weight_q[:, None] * part_qd
    inside_q = t_q < sizes.N
    result_qd = (acc_qd / sum_q[:, None]).to(out.ptr.dtype.element_ty)
    head_q = tl.full((QUERIES,), 0, tl.int64) + head
    tl.store(query_ptrs(out, b, head_q, t_q, D_PAD), result_qd, mask=within(inside_q, D, D_PAD))
    statistics_q = (b * sizes.K * sizes.group_size + head) * sizes.N + t_q
    tl.store(lse_ptr + statistics_q, max_q + tl.log2(sum_q), mask=inside_q)


@triton.jit
def _add_kernel(
    part_ptr, part_lse_ptr, chosen_ptr, total, lse_ptr, sizes,
    D: tl.constexpr, D_PAD: tl.constexpr, S: tl.constexpr, QUERIES: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    b, head, t_q, chosen_q, first_q = _slots_of_program(chosen_ptr, sizes, S, QUERIES)
    acc_qd = tl.zeros((QUERIES, D_PAD), tl.float32)
    for s0 in range(0, S, AHEAD):
        for ahead in tl.static_range(AHEAD):
            part_qd, _ = _part_of_slot(part_ptr, chosen_q, first_q, t_q, s0 + ahead, sizes, D, D_PAD, S)
            acc_qd += part_qd
    result_qd = (acc_qd * sizes.scale).to(total.ptr.dtype.element_ty)
    head_q = tl.full((QUERIES,), 0, tl.int64) + head
    tl.store(query_ptrs(total, b, head_q, t_q, D_PAD), result_qd, mask=within(t_q < sizes.N, D, D_PAD))
