"""Forward pass of block-sparse attention in Triton where queries choose most blocks: dense attention under a mask.

A tile of queries reads all keys from its first document's start on, and a bit per query and block says which count
(``bits.py``). Nothing is gathered, and no partial result is written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dma_lab.kernels.blocks.arguments import masked_config, masked_sizes
from dma_lab.kernels.blocks.tiling import masked_forward_tile
from dma_lab.kernels.interval.arguments import heads_of, new_heads
from dma_lab.kernels.interval.compaction import LOG2_E
from dma_lab.kernels.interval.triton.tiles import (
    head_ptr,
    heads_of_program,
    load_queries,
    load_rows,
    query_ptrs,
    within,
)
from dma_lab.kernels.sizes import cdiv


def masked_forward(
    q: Tensor, k: Tensor, v: Tensor, bits_bkn: Tensor, start_bn: Tensor, block: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (B, H, N, D) and the base-2 logarithm of each query's softmax sum, float32 (B, H, N)."""
    B, H, N, D = q.shape
    tile = masked_forward_tile(D, q.dtype)
    config = masked_config(q, k, v, block, tile)
    out, lse = new_heads(q, H, D), torch.empty(B, H, N, dtype=torch.float32, device=q.device)
    _forward_kernel[(cdiv(N, config.QUERIES), B * H // config.GROUP)](
        *heads_of(q, k, v, out), lse, bits_bkn, start_bn, masked_sizes(q, k, scale), config, **tile.launch
    )
    return out, lse


@triton.jit
def _forward_kernel(q, k, v, out, lse_ptr, bits_ptr, start_ptr, sizes, C: tl.constexpr):
    ROWS: tl.constexpr = C.GROUP * C.QUERIES
    D_PAD: tl.constexpr = C.D_PAD
    t0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * C.QUERIES  # those with most keys first
    b, kv_head, _, head_a, t_a = heads_of_program(sizes, C)
    t_a += t0
    inside_a = t_a < sizes.N
    k_head, v_head, start = head_ptr(k, b, kv_head), head_ptr(v, b, kv_head), start_ptr + b * sizes.N
    q_ad = load_queries(q, b, head_a, t_a, inside_a, C.D, D_PAD)
    bits_a = bits_of_rows(bits_ptr, b, kv_head, t_a, inside_a, sizes)
    start_a = tl.load(start + t_a, mask=inside_a, other=0)
    acc_ad = tl.zeros((ROWS, D_PAD), tl.float32)
    sum_a = tl.zeros((ROWS,), tl.float32)
    max_a = tl.full((ROWS,), float("-inf"), tl.float32)
    rows, keys = (q_ad, bits_a, start_a, t_a), (k_head, k.n, v_head, v.n, start)
    first, inner, last = keys_of_queries(start, t0, sizes, C)
    acc_ad, sum_a, max_a = _attend(acc_ad, sum_a, max_a, rows, keys, first, inner, sizes, C, False)
    acc_ad, sum_a, max_a = _attend(acc_ad, sum_a, max_a, rows, keys, inner, last, sizes, C, True)
    result_ad = (acc_ad / sum_a[:, None]).to(out.ptr.dtype.element_ty)
    tl.store(query_ptrs(out, b, head_a, t_a, D_PAD), result_ad, mask=within(inside_a, C.D, D_PAD))
    tl.store(lse_ptr + (b * sizes.H + head_a) * sizes.N + t_a, max_a + tl.log2(sum_a), mask=inside_a)


@triton.jit
def keys_of_queries(start, t0, sizes, C: tl.constexpr):
    """The first key of a program's queries, where whole tiles end that all of them see, and where all keys end."""
    last = tl.minimum(t0 + C.QUERIES, sizes.N)
    first = tl.load(start + t0)
    alone = tl.load(start + last - 1) == first
    return first, first + tl.where(alone, (t0 + 1 - first) // C.KEYS * C.KEYS, 0), last


@triton.jit
def _attend(acc_ad, sum_a, max_a, rows, keys, begin, end, sizes, C: tl.constexpr, EDGE: tl.constexpr):
    """Weighted sum of V, sum of weights and the running maximum (Milakov & Gimelshein 2018), with these keys too."""
    q_ad, bits_a, start_a, t_a = rows
    scale_log2 = sizes.scale * LOG2_E
    for first in range(begin, end, C.KEYS):
        k_sd, v_sd, j_s, bit_s = load_keys_of_tile(keys, first, sizes, C, EDGE)
        products_as = tl.dot(q_ad, tl.trans(k_sd), input_precision=C.PRECISION)
        live = is_read(bits_a, bit_s, start_a, t_a, j_s, EDGE)
        products_as = tl.where(live, products_as, float("-inf"))
        new_max_a = tl.maximum(max_a, tl.max(products_as, 1) * scale_log2)
        known_a = tl.where(new_max_a == float("-inf"), 0.0, new_max_a)
        weights_as = tl.exp2(products_as * scale_log2 - known_a[:, None])
        shrink_a = tl.exp2(max_a - known_a)
        sum_a = sum_a * shrink_a + tl.sum(weights_as, 1)
        acc_ad = tl.dot(weights_as.to(v_sd.dtype), v_sd, acc_ad * shrink_a[:, None], input_precision=C.PRECISION)
        max_a = new_max_a
    return acc_ad, sum_a, max_a


@triton.jit
def load_keys_of_tile(keys, first, sizes, C: tl.constexpr, EDGE: tl.constexpr):
    """K and V (keys, D) from the key ``first`` on, where each key is, and the bit of its block."""
    k_head, k_n, v_head, v_n, start = keys
    j_s = first + tl.arange(0, C.KEYS)
    row_s = tl.minimum(j_s, sizes.N - 1) if EDGE else j_s
    k_sd = load_rows(k_head, row_s, k_n, None, C.D, C.D_PAD, False, C.WIDE)
    v_sd = load_rows(v_head, row_s, v_n, None, C.D, C.D_PAD, False, C.WIDE)
    return k_sd, v_sd, j_s, bits_of_keys(start, j_s, row_s, C)


@triton.jit
def is_read(bits_a, bit_s, start_a, t_a, j_s, EDGE: tl.constexpr):
    """(rows, keys): whether a row's query chose the key's block and, at the EDGE, whether it may see the key."""
    read = (bits_a[:, None] & bit_s[None, :]) != 0
    if EDGE:
        read = read & (j_s[None, :] <= t_a[:, None]) & (j_s[None, :] >= start_a[:, None])
    return read


@triton.jit
def bits_of_rows(bits_ptr, b, kv_head, t_a, inside_a, sizes):
    """What every attending row's query chose."""
    head = (b * (sizes.H // sizes.group_size) + kv_head) * sizes.N
    return tl.load(bits_ptr + head + t_a, mask=inside_a, other=0)


@triton.jit
def bits_of_keys(start, j_s, row_s, C: tl.constexpr):
    """The bit of each key's block, in its own document."""
    return 1 << ((j_s - tl.load(start + row_s)) // C.BLOCK)
