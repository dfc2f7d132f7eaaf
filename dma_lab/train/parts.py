"""Tensors of which every process of a sharded run holds a part (``DTensor``); all else is its own whole and part."""

from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor

if TYPE_CHECKING:  # importing it takes a second, which a run on one device need not wait
    from torch.distributed.tensor import DTensor


def is_shared(tensor: object) -> "TypeGuard[DTensor]":
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``, gathered: all processes call this."""
    return tensor.full_tensor() if is_shared(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What lies in this process; it may be empty."""
    return tensor.to_local() if is_shared(tensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Of ``tensor``, which every process has all of, what this one holds of ``like``; as ``like`` is held."""
    if not is_shared(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gathered(node: Any, *, kept: bool) -> Any:
    """Nested dictionaries and lists with sharded tensors whole and on the CPU, one after the other: all call this.

    Args:
        kept: False leaves None in their place, where another process keeps them.
    """
    if is_shared(node):
        full = whole(node.detach())
        return full.cpu() if kept else None
    if isinstance(node, dict):
        return {key: gathered(value, kept=kept) for key, value in node.items()}
    if isinstance(node, list):
        return [gathered(value, kept=kept) for value in node]
    return node
