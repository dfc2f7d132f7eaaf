"""What interval attention's kernels are given: tensors with their strides, sizes, and what they are compiled for.

Kernels take NamedTuples whole: runtime values as they are, what is known at compile time as one ``tl.constexpr``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dma_lab.kernels.interval.key_lists import TILE, KeyLists
from dma_lab.kernels.interval.tiling import SHORT_LIST, Tile, heads_together, padded
from dma_lab.kernels.sizes import cdiv


class Heads(NamedTuple):
    """A tensor (B, heads, N, width) by its strides; a row's elements are contiguous."""

    ptr: Tensor
    b: int
    h: int
    n: int


class Sizes(NamedTuple):
    """Of the problem, known at launch."""

    H: int
    group_size: int
    """Query heads of a key/value head."""
    N: int
    capacity: int
    """Keys that a list has room for."""
    scale: float


class QueryConfig(NamedTuple):
    """What a kernel that takes blocks of queries over their lists is compiled for."""

    D: int
    E: int
    D_PAD: int
    E_PAD: int
    GROUP: int
    """Query heads that share a tile."""
    QUERIES: int
    KEYS: int
    TILE: int
    BLOCK: int
    """Queries that share a list."""
    SHORT: int
    """Keys of a list up to which delta comes from the weights (``triton.delta``)."""
    WIDE: bool
    FIXED: bool
    """Whether softmax may be summed against a reference known before; float16 has no room for weights above 1."""
    PRECISION: str


def heads_of(*tensors: Tensor) -> tuple[Heads, ...]:
    return tuple(Heads(tensor, *tensor.stride()[:3]) for tensor in tensors)


def new_heads(like: Tensor, heads: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
    """Empty (B, heads, N, width), laid out with a token's heads together, as projections read and write them."""
    B, _, N, _ = like.shape
    return like.new_empty(B, N, heads, width, dtype=dtype or like.dtype).transpose(1, 2)


def sizes_of(q: Tensor, k: Tensor, lists: KeyLists, scale: float) -> Sizes:
    return Sizes(q.shape[1], q.shape[1] // k.shape[1], q.shape[2], lists.blocks.index_ris.shape[2], scale)


def query_config(q: Tensor, k: Tensor, v: Tensor, block: int, tile: Tile) -> QueryConfig:
    """Of a kernel that takes ``tile`` at a time and whose lists are for blocks of ``block`` queries."""
    D, E, group, exact = q.shape[-1], v.shape[-1], heads_together(q.shape[1] // k.shape[1]), q.dtype == torch.float32
    return QueryConfig(
        D=D,
        E=E,
        D_PAD=padded(D),
        E_PAD=padded(E),
        GROUP=group,
        QUERIES=min(tile.rows // group, block),
        KEYS=tile.keys,
        TILE=TILE,
        BLOCK=block,
        SHORT=0 if exact else SHORT_LIST,
        WIDE=needs_wide_offsets(k, v),
        FIXED=q.dtype != torch.float16,
        PRECISION="ieee" if exact else "tf32",
    )


def query_grid(q: Tensor, config: QueryConfig) -> tuple[int, int]:
    """A program for every block of queries of the heads that share a tile."""
    B, H, N, _ = q.shape
    return cdiv(N, config.QUERIES), B * H // config.GROUP


def needs_wide_offsets(*tensors: Tensor) -> bool:
    """Whether a row of a head can lie 2^31 elements or more behind its first."""
    return any((tensor.shape[2] - 1) * tensor.stride(2) + tensor.shape[3] >= 2**31 for tensor in tensors)
