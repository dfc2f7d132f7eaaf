"""Data-parallel training: every process holds all weights, and gradients are averaged once per step.

DistributedDataParallel does the same with hooks, during the backward pass. Without it nothing but ``take_step``
launches anything, so that a step of several GPUs is captured as one CUDA graph like that of one.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

_MOST_NUMBERS = 2**26
"""In one sum: the copies of gradients that it is of take 256 MiB."""


class ReplicatedStrategy(DDPStrategy):
    """Lightning's processes, devices and checkpoints, without its wrapper around the model."""

    def configure_ddp(self) -> None:
        """All begin with the first process's weights."""
        assert self.model is not None
        with torch.no_grad():
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                dist.broadcast(tensor, src=0)


@torch.no_grad()
def average(gradients: Iterable[Tensor]) -> None:
    """Make of every gradient its mean over processes, all of which call this. Never waits for the device."""
    count = dist.get_world_size()
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        flat /= count
        parts = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(own) for part, own in zip(parts, bucket, strict=True)])


def _buckets(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """In their order, as many together as one sum takes."""
    buckets: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if tensor.numel() > room or tensor.dtype != buckets[-1][0].dtype:
            buckets.append([])
            room = _MOST_NUMBERS
        buckets[-1].append(tensor)
        room -= tensor.numel()
    return buckets
