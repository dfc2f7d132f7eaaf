"""What block-sparse attention's kernels are given: sizes, and what they are compiled for."""

from typing import NamedTuple

from torch import Tensor

from dma_lab.kernels.blocks.tiling import PIECE
from dma_lab.kernels.interval.arguments import needs_wide_offsets
from dma_lab.kernels.interval.tiling import Tile, heads_together, padded
from dma_lab.kernels.sizes import cdiv

_PARTS_BYTES = 2**31
"""What the parts of results, a slot each, may take at a time; heads beyond wait their turn."""


class Sizes(NamedTuple):
    """Of the problem, known at launch."""

    K: int
    group_size: int
    """Query heads of a key/value head."""
    N: int
    first_row: int
    """The key/value head, of all batch entries, that the launch begins with."""
    scale: float


class BlockConfig(NamedTuple):
    """What a kernel that goes by blocks over their queries is compiled for."""

    D: int
    D_PAD: int
    S: int
    """Blocks that a query may choose."""
    BLOCK: int
    """Keys of a block."""
    KEYS: int
    """Of a tile, the block's among them."""
    GROUP: int
    """Query heads that share a tile."""
    SUBGROUPS: int
    """Of GROUP heads, that a key/value head has."""
    QUERIES: int
    PIECE: int
    PRECISION: str


def block_config(q: Tensor, k: Tensor, chosen: Tensor, block: int, tile: Tile) -> BlockConfig:
    D, group_size = q.shape[-1], q.shape[1] // k.shape[1]
    group = heads_together(group_size)
    return BlockConfig(
        D=D,
        D_PAD=padded(D),
        S=chosen.shape[-1],
        BLOCK=block,
        KEYS=padded(block),
        GROUP=group,
        SUBGROUPS=group_size // group,
        QUERIES=tile.rows // group,
        PIECE=PIECE,
        PRECISION="ieee" if q.element_size() == 4 else "tf32",
    )


def pieces_of(chosen: Tensor) -> int:
    """Programs that a key/value head's list may need."""
    return cdiv(chosen.shape[2] * chosen.shape[3], PIECE)


def launches(q: Tensor, k: Tensor, chosen: Tensor, scale: float) -> list[tuple[int, Sizes]]:
    """The key/value heads in turns whose parts fit into ``_PARTS_BYTES``: how many, and the sizes to launch with."""
    B, H, N, D = q.shape
    K = k.shape[1]
    at_once = max(1, _PARTS_BYTES // (N * chosen.shape[-1] * (H // K) * D * q.element_size()))
    rows = range(0, B * K, at_once)
    return [(min(at_once, B * K - first), Sizes(K, H // K, N, first, scale)) for first in rows]


class MaskedSizes(NamedTuple):
    """Of the problem where attention goes by masks, known at launch."""

    H: int
    group_size: int
    """Query heads of a key/value head."""
    N: int
    scale: float


class MaskedConfig(NamedTuple):
    """What a kernel that goes by masks is compiled for."""

    D: int
    D_PAD: int
    BLOCK: int
    """Keys of a block."""
    KEYS: int
    """Of a tile."""
    GROUP: int
    """Query heads that share a tile."""
    QUERIES: int
    WIDE: bool
    PRECISION: str


def masked_sizes(q: Tensor, k: Tensor, scale: float) -> MaskedSizes:
    return MaskedSizes(q.shape[1], q.shape[1] // k.shape[1], q.shape[2], scale)


def masked_config(q: Tensor, k: Tensor, v: Tensor, block: int, tile: Tile) -> MaskedConfig:
    D, group = q.shape[-1], heads_together(q.shape[1] // k.shape[1])
    return MaskedConfig(
        D=D,
        D_PAD=padded(D),
        BLOCK=block,
        KEYS=tile.keys,
        GROUP=group,
        QUERIES=tile.rows // group,
        WIDE=needs_wide_offsets(k, v),
        PRECISION="ieee" if q.element_size() == 4 else "tf32",
    )
