"""What the Triton kernels share: where a program stands, tiles of rows, logits of a tile."""

import triton
import triton.language as tl


@triton.jit
def heads_of_program(sizes, C: tl.constexpr):
    """Where the programs of one second index stand: batch entry, key/value head and the first of its lists; and of
    every attending row its query head and its query, counted from the program's first.
    """
    head0 = tl.program_id(1) * C.GROUP
    b, h0 = (head0 // sizes.H).to(tl.int64), head0 % sizes.H
    kv_head = h0 // sizes.group_size
    first_list = (b * (sizes.H // sizes.group_size) + kv_head) * tl.cdiv(sizes.N, C.BLOCK)
    row_a = tl.arange(0, C.GROUP * C.QUERIES)
    return b, kv_head.to(tl.int64), first_list, (h0 + row_a // C.QUERIES).to(tl.int64), row_a % C.QUERIES


@triton.jit
def head_ptr(heads, b, head):
    """Where a head, or each of several, begins."""
    return heads.ptr + b * heads.b + head * heads.h


@triton.jit
def row_ptrs(head, row, stride, WIDTH_PAD: tl.constexpr):
    """(rows, WIDTH_PAD): the elements of a head's rows."""
    return head + row.to(tl.int64)[:, None] * stride + tl.arange(0, WIDTH_PAD)[None, :]


@triton.jit
def query_ptrs(heads, b, head_a, t_a, WIDTH_PAD: tl.constexpr):
    """(rows, WIDTH_PAD): the elements of query ``t_a`` of head ``head_a``, for every attending row."""
    return row_ptrs(head_ptr(heads, b, head_a)[:, None], t_a, heads.n, WIDTH_PAD)


@triton.jit
def within(inside_a, WIDTH: tl.constexpr, WIDTH_PAD: tl.constexpr):
    """(rows, WIDTH_PAD): which elements of a padded tile exist."""
    return inside_a[:, None] & (tl.arange(0, WIDTH_PAD) < WIDTH)[None, :]


@triton.jit
def load_queries(heads, b, head_a, t_a, inside_a, WIDTH: tl.constexpr, WIDTH_PAD: tl.constexpr):
    """(rows, WIDTH_PAD) tile of the attending rows; zeros outside of the sequence and past WIDTH."""
    pointers = query_ptrs(heads, b, head_a, t_a, WIDTH_PAD)
    return tl.load(pointers, mask=within(inside_a, WIDTH, WIDTH_PAD), other=0.0)


@triton.jit
def load_rows(
    head, row_s, stride, in_range_s,
    WIDTH: tl.constexpr, WIDTH_PAD: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(slots, WIDTH_PAD) tile of a head's rows ``row_s``; zeros where masked and past WIDTH."""
    column = tl.arange(0, WIDTH_PAD)
    # Narrow offsets take half the integer instructions, which the forward pass is short of.
    offset = row_s.to(tl.int64) * stride if WIDE else row_s * stride
    pointer = head + offset[:, None] + column[None, :]
    if MASKED and WIDTH != WIDTH_PAD:
        return tl.load(pointer, mask=in_range_s[:, None] & (column < WIDTH)[None, :], other=0.0)
    if MASKED:
        return tl.load(pointer, mask=in_range_s[:, None], other=0.0)
    if WIDTH != WIDTH_PAD:
        return tl.load(pointer, mask=(column < WIDTH)[None, :], other=0.0)
    return tl.load(pointer)


@triton.jit
def logits_of_tile(q_ad, k_sd, flag, lists, place, query_a, scale_log2, C: tl.constexpr):
    """Base-2 logits (rows, keys): scale * q . k + listed bias, and -inf where the key does not live for the query.

    ``place`` is where the tile begins in the lists' memory, ``flag`` is its entry of ``mask_rif``, and ``query_a``
    counts from the first of the list's block, as spans do.
    """
    slot_s = tl.arange(0, C.KEYS)
    logits_as = tl.dot(q_ad, tl.trans(k_sd), input_precision=C.PRECISION) * scale_log2
    if lists.bias_ris is not None:
        logits_as += tl.load(lists.bias_ris + place + slot_s)[None, :]
    if flag != 0:
        span_s = tl.load(lists.span_ris + place + slot_s)
        live = ((span_s & 0xFFFF)[None, :] <= query_a[:, None]) & (query_a[:, None] < (span_s >> 16)[None, :])
        logits_as = tl.where(live, logits_as, float("-inf"))
    return logits_as
