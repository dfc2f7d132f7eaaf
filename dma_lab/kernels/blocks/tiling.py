"""How large a piece of the problem one GPU program takes: chosen from shapes alone, so nothing is tuned at run time."""

import torch

from dma_lab.kernels.interval.tiling import Tile

PIECE = 1024
"""Places of a head's list of queries that one program takes: few blocks are cut, and work is shared out."""


def forward_tile(head_dim: int, dtype: torch.dtype) -> Tile:
    """``keys`` is unused: a tile has a block's."""
    if dtype == torch.float32:
        return Tile(32, 0, 4, 1)
    return Tile(64, 0, 4, 3) if head_dim <= 128 else Tile(64, 0, 8, 1)


def backward_tile(head_dim: int, dtype: torch.dtype) -> Tile:
    if dtype == torch.float32:
        return Tile(32, 0, 8, 1)
    if head_dim > 128:
        return Tile(32, 0, 8, 1)
    return Tile(64, 0, 8, 2) if head_dim <= 64 else Tile(32, 0, 4, 2)


def importance_tile(head_dim: int, dtype: torch.dtype) -> Tile:
    """``keys`` are selection blocks."""
    if dtype == torch.float32:
        return Tile(32, 32, 4, 1)
    return Tile(128, 64, 4, 2) if head_dim <= 128 else Tile(64, 32, 8, 1)


def masked_forward_tile(head_dim: int, dtype: torch.dtype) -> Tile:
    if dtype == torch.float32:
        return Tile(32, 32, 4, 1)
    if head_dim > 128:
        return Tile(64, 64, 8, 1)
    return Tile(128, 64, 4, 3) if head_dim <= 64 else Tile(64, 64, 4, 3)


def masked_dq_tile(head_dim: int, dtype: torch.dtype) -> Tile:
    if dtype == torch.float32:
        return Tile(32, 32, 4, 1)
    return Tile(64, 64, 4, 2) if head_dim <= 128 else Tile(64, 32, 8, 1)


def masked_dkv_tile(head_dim: int, dtype: torch.dtype) -> Tile:
    if dtype == torch.float32:
        return Tile(32, 32, 4, 1)
    return Tile(32, 64, 4, 3) if head_dim <= 128 else Tile(32, 64, 8, 1)
