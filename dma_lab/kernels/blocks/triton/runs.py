"""What the kernels share that go by blocks: the runs of a piece of a list, and tiles of their queries.

A run is the part of a piece whose queries chose one block.
"""

import triton
import triton.language as tl

from dma_lab.kernels.interval.triton.tiles import head_ptr, load_rows


@triton.jit
def piece_of_program(place_ptr, length_ptr, chosen_ptr, sizes, C: tl.constexpr):
    """Where a program stands: batch entry, key/value head, the head's list and choices, and the piece's bounds."""
    row = sizes.first_row + tl.program_id(1).to(tl.int64)
    listed = row * sizes.N * C.S
    begin = tl.program_id(0) * C.PIECE
    end = tl.minimum(begin + C.PIECE, tl.load(length_ptr + row))
    return row // sizes.K, row % sizes.K, place_ptr + listed, chosen_ptr + listed, begin, end


@triton.jit
def block_at(places, chosen, at):
    """First key of the block that the list is about there."""
    return tl.load(chosen + tl.load(places + at))


@triton.jit
def blocks_of_piece(places, chosen, begin, end, C: tl.constexpr):
    """``block_at`` for all of a piece; -1 behind its end."""
    at_p = begin + tl.arange(0, C.PIECE)
    place_p = tl.load(places + at_p, mask=at_p < end, other=0)
    return tl.load(chosen + place_p, mask=at_p < end, other=-1)


@triton.jit
def load_keys(heads, b, kv_head, first, sizes, C: tl.constexpr):
    """(keys, D_PAD) tile of a block."""
    slot_s = tl.arange(0, C.KEYS)
    inside_s = (slot_s < C.BLOCK) & (first + slot_s < sizes.N)
    return load_rows(head_ptr(heads, b, kv_head), first + slot_s, heads.n, inside_s, C.D, C.D_PAD, True, True)


@triton.jit
def load_places(places, at, end, sizes, C: tl.constexpr):
    """Places of the queries of a tile, for every attending row, and whether there is one; where not, the last query's:
    it lies in no block but the last."""
    at_a = at + tl.arange(0, C.GROUP * C.QUERIES) % C.QUERIES
    return tl.load(places + at_a, mask=at_a < end, other=sizes.N * C.S - 1), at_a < end


@triton.jit
def part_rows(local_row, place_a, head_in_group_a, sizes, C: tl.constexpr):
    """Index of an attending row's part, (rows of the launch, N * S, group)."""
    return (local_row * sizes.N * C.S + place_a) * sizes.group_size + head_in_group_a
