"""How many sequences go through a model at a time."""

import math

import torch

from dma_lab.model import Transformer
from dma_lab.model.accounting import estimate_memory
from dma_lab.train.hardware import Hardware
from dma_lab.train.settings import TrainSettings

_SMALLEST_GPU_MICRO_BATCH, _LARGEST_GPU_MICRO_BATCH = 16_384, 65_536
"""Tokens: with fewer a GPU is not busy; twice as many made 80m 1 % faster, in almost twice the memory."""
_SHARE_OF_MEMORY = 0.7
"""Of a GPU's, that the estimate for MHA may take where nobody chose the micro-batch: NSA keeps a fifth more."""


def count_micro_batches(settings: TrainSettings, rung: Transformer, sequences: int, hardware: Hardware) -> int:
    """Micro-batches that ``sequences`` sequences are split into: as few as fit, all of one size.

    As few as fit the rung with MHA: every backend of a rung has as many, for how a GPU rounds depends on them.
    """
    micro = settings.trainer.micro_batch_sequences
    if micro is None:
        micro = sequences
        if hardware.device.type == "cuda":
            room = torch.cuda.get_device_properties(hardware.device).total_memory
            micro = gpu_micro_batch(rung, sequences, settings.trainer.context, hardware.activation_dtype, room)
    return sequences // micro


def gpu_micro_batch(model: Transformer, sequences: int, context: int, activation_dtype: torch.dtype, room: int) -> int:
    """Sequences per micro-batch on a GPU of ``room`` bytes, a divisor of ``sequences``: as many as make it faster."""
    sizes = sorted(divisors(sequences))
    smallest = max((size for size in sizes if size * context <= _SMALLEST_GPU_MICRO_BATCH), default=1)
    return max(
        size
        for size in sizes
        if size <= smallest
        or (
            size * context <= _LARGEST_GPU_MICRO_BATCH
            and estimate_memory(model, size, context, activation_dtype, accumulates=size < sequences).total
            <= _SHARE_OF_MEMORY * room
        )
    )


def divisors(number: int) -> list[int]:
    """All of them, in no order."""
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return [*small, *(number // size for size in small)]
