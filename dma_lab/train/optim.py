"""AdamW with decay on matrices only, and learning rates as pure functions of the step."""

import math
from collections.abc import Callable

import torch
from torch import nn

from dma_lab.train.settings import ScheduleSettings


def build_adamw(
    model: nn.Module, *, learning_rate: float, weight_decay: float, betas: list[float], eps: float
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101); parameters of one dimension or none (norms, DMA's A) are not decayed."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=learning_rate,
        betas=(betas[0], betas[1]),
        eps=eps,
        fused=True,
    )


def schedule_phases(schedule: ScheduleSettings, steps: int) -> tuple[int, int]:
    """Steps of warm-up, and of decay, in a run of ``steps``."""
    warmup = math.ceil(schedule.warmup_fraction * steps) if schedule.warmup_steps is None else schedule.warmup_steps
    return warmup, math.ceil(schedule.decay_fraction * steps)


def learning_rate_multiplier(schedule: ScheduleSettings, steps: int) -> Callable[[int], float]:
    """Multiplier of the peak learning rate for the update that follows ``step`` finished ones, 0 <= step < steps.

    Linear warm-up over the first steps, then the peak, then a decay over the last steps to ``final_fraction``: linear
    for ``wsd`` (warmup-stable-decay, arXiv 2405.18392), half a cosine for ``cosine``.
    """
    warmup, decay = schedule_phases(schedule, steps)

    def multiplier(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if step < steps - decay:
            return 1.0
        left = (steps - step) / (decay + 1)
        shape = left if schedule.name == "wsd" else 0.5 - 0.5 * math.cos(math.pi * left)
        return schedule.final_fraction + (1 - schedule.final_fraction) * shape

    return multiplier
