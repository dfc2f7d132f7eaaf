"""Optimizers with decay on matrices only, and learning rates as pure functions of the step."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from dma_lab.model import Transformer
from dma_lab.train.muon import Muon
from dma_lab.train.settings import AdamWSettings, MuonSettings, ScheduleSettings


def build_optimizers(model: Transformer, settings: AdamWSettings | MuonSettings) -> list[torch.optim.Optimizer]:
    """Those that update ``model`` together. A group's ``rate_multiplier`` is of the run's learning rate."""
    if isinstance(settings, AdamWSettings):
        return [_adamw(model.parameters(), settings, settings.learning_rate)]
    matrices = hidden_matrices(model)
    ours = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in ours]
    muon = Muon(
        matrices,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    adamw = _adamw(others, settings, settings.learning_rate * settings.adamw_multiplier)
    for group in adamw.param_groups:
        group["rate_multiplier"] = settings.adamw_multiplier
    return [muon, adamw]


def hidden_matrices(model: Transformer) -> list[Tensor]:
    """What Muon updates: the weights of the layers' linear maps, but not of DMA's scores, one number per head."""
    return [
        module.weight
        for name, module in model.layers.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("dt_proj")
    ]


def optimizer_bytes(model: Transformer, settings: AdamWSettings | MuonSettings) -> int:
    """What ``build_optimizers`` keeps in float32: AdamW two moments of a parameter, Muon one of a matrix' entry."""
    numbers = 2 * sum(parameter.numel() for parameter in model.parameters())
    if isinstance(settings, MuonSettings):
        numbers -= sum(matrix.numel() for matrix in hidden_matrices(model))
    return 4 * numbers


def _adamw(
    parameters: Iterable[Tensor], settings: AdamWSettings | MuonSettings, learning_rate: float
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101); parameters of one dimension or none (norms, DMA's A) are not decayed."""
    parameters = list(parameters)
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    others = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=learning_rate,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.eps,
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
