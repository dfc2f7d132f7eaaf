"""Queries of a head in order, through a ring in shared memory: what dK and dV on Hopper GPUs sum over.

One warp fetches for two groups of keys, and the tensor memory accelerator copies whole tiles.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from dma_lab.kernels.interval.hopper.ring import acquire, await_tile, release

TILE_QUERIES = gl.constexpr(32)
# In shared memory. Made once: a layout costs more than the descriptor that has it, and every launch makes four.
_ROWS_LAYOUT = gl.NVMMASharedLayout(128, 16, 4)
_LINE_LAYOUT = gl.NVMMASharedLayout(0, 32, 1)
_copy_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # before Triton 3.8


def query_tiles(tensor: Tensor) -> TensorDescriptor:
    """A (B, H, N, D) tensor in tiles of TILE_QUERIES rows of a head; rows past the last are zeros."""
    D = tensor.shape[-1]
    tile = [1, 1, TILE_QUERIES.value, D]
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), tile, _ROWS_LAYOUT)


def line_tiles(line: Tensor) -> TensorDescriptor:
    """A (B, H, N) tensor of float32, flat, TILE_QUERIES at a time: past a head's last lies what the next one has.

    N is padded to a multiple of 4: a tile that does not start at a multiple of 16 bytes is an illegal instruction.
    """
    N = line.shape[-1]
    line = F.pad(line, (0, -N % 4)) if N % 4 else line
    return TensorDescriptor(line, [line.numel()], [1], [TILE_QUERIES.value], _LINE_LAYOUT)


class QueryRing(NamedTuple):
    """Shared memory of STAGES tiles of queries, and the barriers that say full and free."""

    q: gl.shared_memory_descriptor
    d_out: gl.shared_memory_descriptor
    lse: gl.shared_memory_descriptor
    delta: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    free: gl.shared_memory_descriptor


class Pair(NamedTuple):
    """What both consumers of a program need to know."""

    slot0: gl.tensor
    """The first key's place in the order."""
    first: gl.tensor
    last: gl.tensor
    """Query tiles [first, last) that see any of the keys."""


@gluon.jit
def lifetimes(order_ptr, expiry_ptr, slot_s, N):
    """Keys at places ``slot_s`` of the order, their expiries, and the query tiles [first, last) that see any."""
    j_s = gl.load(order_ptr + slot_s, mask=slot_s < N, other=0)
    expiry_s = gl.load(expiry_ptr + j_s, mask=slot_s < N, other=0)
    first = gl.min(gl.where(expiry_s > j_s, j_s, N), 0) // TILE_QUERIES
    last = gl.cdiv(gl.max(gl.where(expiry_s > j_s, expiry_s, 0), 0), TILE_QUERIES)
    return j_s, expiry_s, first, last


@gluon.jit
def produce_queries(q_tiles, do_tiles, lse_tiles, delta_tiles, place, pair, ring, C: gl.constexpr):
    """The producer's warp: query tiles of the head at ``place``, whose statistics begin at its ``line``."""
    b, head, line = place
    for tile in range(pair.first, pair.last):
        n = tile - pair.first
        stage = n % C.STAGES
        t = tile * TILE_QUERIES
        arrived = ring.full.index(stage)
        acquire(ring, n, C.STAGES)
        mbarrier.expect(arrived, TILE_QUERIES * (2 * C.D + 2 * C.E + 8))
        _copy_tile(q_tiles, [b, head, t, 0], arrived, ring.q.index(stage).reshape([1, 1, TILE_QUERIES, C.D]))
        _copy_tile(do_tiles, [b, head, t, 0], arrived, ring.d_out.index(stage).reshape([1, 1, TILE_QUERIES, C.E]))
        _copy_tile(lse_tiles, [line + t], arrived, ring.lse.index(stage))
        _copy_tile(delta_tiles, [line + t], arrived, ring.delta.index(stage))


@gluon.jit
def pass_on(tile_from, tile_to, first, ring, STAGES: gl.constexpr):
    """Tiles that only the other group needs."""
    for tile in range(tile_from, tile_to):
        release(ring, await_tile(ring, tile - first, STAGES))
