"""A run's model with its initial weights, compiled where that is asked for."""

import torch

from dma_lab.train.beginning import Beginning
from dma_lab.train.hardware import Hardware
from dma_lab.train.module import LanguageModel
from dma_lab.train.optim import build_optimizers, learning_rate_multiplier
from dma_lab.train.plan import RunPlan, build_model
from dma_lab.train.settings import TrainSettings


def forget_compiled(hardware: Hardware) -> None:
    """What this process compiled for its earlier runs: it would count towards Dynamo's limit of graphs, and one run's
    shapes would decide how the next one's are compiled."""
    if hardware.compile:
        torch.compiler.reset()
        # Blocks are compiled one by one, and their gradients exchanged as each is done: split into DDP's buckets they
        # would be other graphs than those of one device.
        torch._dynamo.config.optimize_ddp = False


def language_model(
    settings: TrainSettings,
    plan: RunPlan,
    hardware: Hardware,
    beginning: Beginning | None = None,
    *,
    sharded: bool = False,
) -> LanguageModel:
    """The run's model with its initial weights, compiled where that is asked for."""
    optimizer = settings.optimizer
    multiplier = learning_rate_multiplier(settings.schedule, plan.steps)
    model = build_model(settings, plan.shape)
    if beginning is not None:
        beginning.load_into(model)
    module = LanguageModel(
        model,
        make_optimizers=lambda model: build_optimizers(model, optimizer),
        learning_rate=lambda step: optimizer.learning_rate * multiplier(step),
        gradient_clip=optimizer.gradient_clip,
        accumulate=plan.accumulate,
    )
    if hardware.compile:
        # Block by block: they share one compiled graph, so compiling takes seconds at any depth.
        for block in module.model.blocks:
            if sharded:  # not the hooks around it, which gather its weights
                block.forward = torch.compile(block.forward, fullgraph=True)  # type: ignore[method-assign]
            else:
                block.compile(fullgraph=True)
        module.model.cross_entropy.compile(fullgraph=True)
    return module
