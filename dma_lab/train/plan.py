"""What a run will be and cost, worked out before anything is spent."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from dma_lab.messages import UserError
from dma_lab.model import ModelShape, Transformer
from dma_lab.model.accounting import (
    ParameterCount,
    TrainingFlops,
    TrainingMemory,
    count_parameters,
    estimate_memory,
    training_flops_per_sequence,
)
from dma_lab.scaling.ladder import reference_parameters
from dma_lab.scaling.matching import match_width
from dma_lab.train.hardware import Hardware
from dma_lab.train.optim import schedule_phases
from dma_lab.train.settings import ScheduleSettings, TrainSettings

_GPU_MICRO_BATCH_TOKENS = 16_384
_MOST_TOKENS = 1e18
_LEAST_STEPS = 10
"""That a budget of FLOP comes to: rounded to whole steps it is then met within 5 %."""


@dataclass(frozen=True)
class RunPlan:
    """The run's model, budget and cost."""

    shape: ModelShape
    parameters: ParameterCount
    reference_parameters: int
    """Non-embedding parameters of the MHA rung: what the budget counts and what backends are matched to."""
    steps: int
    sequences_per_step: int
    accumulate: int
    """Micro-batches a step and device."""
    tokens: int
    flops: TrainingFlops
    """Of the whole run."""
    memory: TrainingMemory
    """On one device."""

    @property
    def tokens_per_step(self) -> int:
        return self.sequences_per_step * self.shape.max_seq_len

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / self.parameters.non_embedding


def plan_run(settings: TrainSettings, vocab_size: int, hardware: Hardware) -> RunPlan:
    """Work out the run. Builds the model on the meta device, so it costs no memory at any size.

    Raises:
        UserError: when the backend cannot do the rung's shape or cannot be matched to it, or the warm-up reaches into
            the decay.
    """
    trainer, rung = settings.trainer, settings.model
    reference = reference_parameters(
        rung.n_layers, rung.d_model, rung.n_heads, rung.n_kv_heads, rung.head_dim, rung.d_ff
    )
    shape = matched_shape(settings, vocab_size, reference)
    model = meta_model(settings, shape)

    budget = _budget_tokens(settings, vocab_size, reference)
    if budget > _MOST_TOKENS:
        raise UserError(
            f"{_budget_named(settings)} comes to {budget:.3g} tokens, more than anyone will train on "
            f"({_MOST_TOKENS:.0e}); give less."
        )
    steps = max(1, round(budget / trainer.tokens_per_step))
    _refuse_long_warmup(settings.schedule, steps)
    sequences_per_step = trainer.tokens_per_step // trainer.context
    accumulate = _micro_batches(settings, sequences_per_step // trainer.devices, hardware)
    per_sequence = training_flops_per_sequence(model, trainer.context)
    sequences = steps * sequences_per_step
    return RunPlan(
        shape=shape,
        parameters=count_parameters(model),
        reference_parameters=reference,
        steps=steps,
        sequences_per_step=sequences_per_step,
        accumulate=accumulate,
        tokens=steps * trainer.tokens_per_step,
        flops=TrainingFlops(
            dense_equivalent=sequences * per_sequence.dense_equivalent, executed=sequences * per_sequence.executed
        ),
        memory=estimate_memory(
            model, sequences_per_step // trainer.devices // accumulate, trainer.context, hardware.activation_dtype
        ),
    )


def _budget_tokens(settings: TrainSettings, vocab_size: int, reference: int) -> float:
    """Tokens that the budget pays for. It counts the MHA rung, so that every backend of a rung trains on the same."""
    if settings.tokens is not None:
        return settings.tokens
    if settings.flops is None:
        return settings.tokens_per_parameter * reference
    context, step = settings.trainer.context, settings.trainer.tokens_per_step
    a_token = _rung_flops_per_sequence(settings, vocab_size).dense_equivalent / context
    tokens = settings.flops / a_token
    if tokens < _LEAST_STEPS * step:
        raise UserError(
            f"flops={settings.flops:g} pays for {tokens:,.0f} tokens of the MHA rung {settings.model.name}, less than "
            f"{_LEAST_STEPS} steps of {step:,}, whose rounding would miss the budget by more than 5 %; give at least "
            f"{_LEAST_STEPS * step * a_token:.3g}."
        )
    return tokens


def _budget_named(settings: TrainSettings) -> str:
    if settings.flops is not None:
        return f"flops={settings.flops:g}"
    return f"tokens_per_parameter={settings.tokens_per_parameter:g} for model.name={settings.model.name}"


def _rung_flops_per_sequence(settings: TrainSettings, vocab_size: int) -> TrainingFlops:
    with torch.device("meta"):
        mha = Transformer(_rung_shape(settings, vocab_size, settings.model.d_ff), "mha")
    return training_flops_per_sequence(mha, settings.trainer.context)


def _refuse_long_warmup(schedule: ScheduleSettings, steps: int) -> None:
    _, decay = schedule_phases(schedule, steps)
    if schedule.warmup_steps is not None and schedule.warmup_steps > steps - decay:
        raise UserError(
            f"schedule.warmup_steps={schedule.warmup_steps} reaches into the decay, which begins after "
            f"{steps - decay:,} of the run's {steps:,} steps; give fewer, or a larger budget."
        )


def matched_shape(settings: TrainSettings, vocab_size: int, reference: int) -> ModelShape:
    """The rung's shape, its feed-forward width chosen so that the backend costs what the MHA rung costs."""
    shape = partial(_rung_shape, settings, vocab_size)
    start = settings.model.d_ff
    if settings.match == "none":
        return shape(start)
    if settings.match == "params":
        target = reference
        width = match_width(
            lambda d_ff: _at_depth(lambda model: count_parameters(model).non_embedding, settings, shape(d_ff)),
            target,
            start=start,
            kind="non-embedding parameters",
        )
    else:
        context = settings.trainer.context
        target = _rung_flops_per_sequence(settings, vocab_size).executed
        width = match_width(
            lambda d_ff: _at_depth(
                lambda model: training_flops_per_sequence(model, context).executed, settings, shape(d_ff)
            ),
            target,
            start=start,
            kind="training FLOPs a sequence",
        )
    return shape(width)


def _at_depth(count: Callable[[Transformer], int], settings: TrainSettings, shape: ModelShape) -> int:
    """``count`` of the model of ``shape``: layers are all alike, so two small models tell it of any number of them."""
    one, two = (count(meta_model(settings, replace(shape, n_layers=layers))) for layers in (1, 2))
    return one + (shape.n_layers - 1) * (two - one)


def _rung_shape(settings: TrainSettings, vocab_size: int, d_ff: int) -> ModelShape:
    rung = settings.model
    return ModelShape(
        n_layers=rung.n_layers,
        d_model=rung.d_model,
        n_heads=rung.n_heads,
        n_kv_heads=rung.n_kv_heads,
        head_dim=rung.head_dim,
        d_ff=d_ff,
        vocab_size=vocab_size,
        max_seq_len=settings.trainer.context,
        tie_embeddings=rung.tie_embeddings,
    )


def meta_model(settings: TrainSettings, shape: ModelShape) -> Transformer:
    """The model without memory: shapes only."""
    with torch.device("meta"):
        return build_model(settings, shape)


def build_model(settings: TrainSettings, shape: ModelShape) -> Transformer:
    """The model with its initial weights, on the current default device."""
    options = {option: value for option, value in settings.attention.items() if option != "name"}
    return Transformer(shape, settings.attention["name"], options, seed=settings.seed)


def _micro_batches(settings: TrainSettings, sequences: int, hardware: Hardware) -> int:
    """Micro-batches that ``sequences`` sequences are split into: as few as fit, all of one size."""
    micro = settings.trainer.micro_batch_sequences
    if micro is None:
        fit = (
            max(1, _GPU_MICRO_BATCH_TOKENS // settings.trainer.context) if hardware.device.type == "cuda" else sequences
        )
        micro = max(size for size in _divisors(sequences) if size <= max(1, fit))
    return sequences // micro


def _divisors(number: int) -> list[int]:
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return [*small, *(number // size for size in small)]
