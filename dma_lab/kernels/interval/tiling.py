"""How large a piece of the problem one GPU program takes: chosen from shapes alone, so nothing is tuned at run time."""

from typing import NamedTuple

import torch

from dma_lab.kernels.sizes import next_power_of_2

LIST_ROWS = 128
"""Rows, of queries times the heads that share them, for which one key list is made; no forward or dQ tile is taller."""

SHORT_LIST = 256
"""Keys of a list up to which the backward pass of 16-bit inputs takes delta from the weights, not from the output."""


class Tile(NamedTuple):
    """``rows`` by ``keys`` logits at a time; rows are queries, times the query heads that share them."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int

    @property
    def launch(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def forward_tile(head_dim: int, dtype: torch.dtype) -> Tile:
    if dtype == torch.float32:
        return Tile(64, 32, 4, 2)
    return Tile(64, 64, 4, 2) if head_dim <= 128 else Tile(128, 64, 8, 2)


def dq_tile(head_dim: int, dtype: torch.dtype) -> Tile:
    if dtype == torch.float32:
        return Tile(32, 32, 4, 1)
    return Tile(64, 64, 4, 2) if head_dim <= 128 else Tile(64, 64, 8, 1)


def dkv_tile(head_dim: int, dtype: torch.dtype) -> Tile:
    if dtype == torch.float32:
        return Tile(32, 32, 4, 1)
    return Tile(32, 64, 4, 3) if head_dim <= 128 else Tile(32, 64, 8, 1)


def heads_together(group_size: int) -> int:
    """Query heads of a key/value head that one tile serves: a power of two that divides the group, 8 at most."""
    return min(8, group_size & -group_size)


def padded(head_dim: int) -> int:
    """Width of a tile that holds head_dim columns: a power of two, 16 at least (what matrix units take)."""
    return max(16, next_power_of_2(head_dim))
