"""What a run will be and cost, worked out before anything is spent."""

from dataclasses import dataclass, replace

import torch

from dma_lab.messages import UserError
from dma_lab.model import ModelShape, Transformer
from dma_lab.model.accounting import (
    ParameterCount,
    TrainingFlops,
    TrainingMemory,
    count_parameters,
    estimate_memory,
    keys_per_query,
    training_flops_per_sequence,
)
from dma_lab.model.matching import match_width
from dma_lab.train.hardware import Hardware
from dma_lab.train.micro_batch_size import count_micro_batches
from dma_lab.train.optim import optimizer_bytes, schedule_phases
from dma_lab.train.settings import ScheduleSettings, TrainSettings

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
    """Micro-batches per step and device."""
    tokens: int
    flops: TrainingFlops
    """Of the whole run."""
    memory: TrainingMemory
    """On one device."""
    keys_per_query: float | None
    """Mean over the context's queries, and over layers."""

    @property
    def tokens_per_step(self) -> int:
        return self.sequences_per_step * self.shape.max_seq_len

    @property
    def micro_batch_flops(self) -> float:
        """Executed, on one device."""
        return self.flops.executed / (self.steps * self.accumulate)

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / self.parameters.non_embedding


def plan_run(settings: TrainSettings, vocab_size: int, hardware: Hardware) -> RunPlan:
    """Work out the run. Builds the model on the meta device, so it costs no memory at any size.

    Raises:
        UserError: when the backend cannot do the rung's shape or cannot be matched to it, or the budget cannot be
            (``budget_tokens``).
    """
    trainer = settings.trainer
    model = matched_model(settings, vocab_size)
    tokens = budget_tokens(settings, vocab_size)
    sequences_per_step = trainer.tokens_per_step // trainer.context
    rung = _rung_model(settings, vocab_size)
    accumulate = count_micro_batches(settings, rung, sequences_per_step // trainer.processes, hardware)
    per_sequence = training_flops_per_sequence(model, trainer.context)
    sequences = tokens // trainer.context
    memory = estimate_memory(
        model,
        sequences_per_step // trainer.processes // accumulate,
        trainer.context,
        hardware.activation_dtype,
        accumulates=accumulate > 1 or trainer.strategy == "fsdp",
    )
    memory = replace(memory, optimizer=optimizer_bytes(model, settings.optimizer))
    if trainer.strategy == "fsdp":
        memory = _shared(memory, model, trainer.processes)
    return RunPlan(
        shape=model.shape,
        parameters=count_parameters(model),
        reference_parameters=settings.model.parameters,
        steps=tokens // trainer.tokens_per_step,
        sequences_per_step=sequences_per_step,
        accumulate=accumulate,
        tokens=tokens,
        flops=TrainingFlops(
            dense_equivalent=sequences * per_sequence.dense_equivalent, executed=sequences * per_sequence.executed
        ),
        keys_per_query=keys_per_query([block.attention for block in model.blocks], trainer.context),
        memory=memory,
    )


def _shared(memory: TrainingMemory, model: Transformer, devices: int) -> TrainingMemory:
    """What is left on each of ``devices`` that share the state; what computes is whole: a layer, and all but layers."""
    layer = sum(weight.numel() for weight in model.blocks[0].parameters())
    computes = 4 * (count_parameters(model).total - (model.shape.n_layers - 1) * layer) if devices > 1 else 0
    return replace(
        memory,
        weights=memory.weights // devices + computes,
        gradients=memory.gradients // devices + computes,
        optimizer=memory.optimizer // devices,
    )


def padded_vocabulary(vocab_size: int) -> int:
    """Rows of the embedding: the tokenizer's size rounded up to 64, which matrix units like."""
    return -(-vocab_size // 64) * 64


def budget_tokens(settings: TrainSettings, vocab_size: int) -> int:
    """Tokens that the run trains on: what the budget pays for, in whole steps.

    A budget counts the MHA rung, so that every backend of a rung trains on the same; ``vocab_size`` matters to one of
    FLOP alone, through the head.

    Raises:
        UserError: the budget is beyond reason, or too small for whole steps or for the warm-up.
    """
    step = settings.trainer.tokens_per_step
    if settings.tokens is not None:
        budget: float = settings.tokens
    elif settings.flops is None:
        budget = settings.tokens_per_parameter * settings.model.parameters
    else:
        per_token = _rung_flops_per_sequence(settings, vocab_size).dense_equivalent / settings.trainer.context
        budget = settings.flops / per_token
        if budget < _LEAST_STEPS * step:
            raise UserError(
                f"flops={settings.flops:g} pays for {budget:,.0f} tokens of the MHA rung {settings.model.name}, less "
                f"than {_LEAST_STEPS} steps of {step:,}, whose rounding would miss the budget by more than 5 %; give "
                f"at least {_LEAST_STEPS * step * per_token:.3g}."
            )
    if budget > _MOST_TOKENS:
        raise UserError(
            f"{_budget_named(settings)} comes to {budget:.3g} tokens, more than the limit "
            f"({_MOST_TOKENS:.0e}); give less."
        )
    steps = max(1, round(budget / step))
    _refuse_long_warmup(settings.schedule, steps)
    return steps * step


def _budget_named(settings: TrainSettings) -> str:
    if settings.flops is not None:
        return f"flops={settings.flops:g}"
    return f"tokens_per_parameter={settings.tokens_per_parameter:g} for model.name={settings.model.name}"


def _rung_flops_per_sequence(settings: TrainSettings, vocab_size: int) -> TrainingFlops:
    return training_flops_per_sequence(_rung_model(settings, vocab_size), settings.trainer.context)


def _refuse_long_warmup(schedule: ScheduleSettings, steps: int) -> None:
    _, decay = schedule_phases(schedule, steps)
    if schedule.warmup_steps is not None and schedule.warmup_steps > steps - decay:
        raise UserError(
            f"schedule.warmup_steps={schedule.warmup_steps} reaches into the decay, which begins after "
            f"{steps - decay:,} of the run's {steps:,} steps; give fewer, or a larger budget."
        )


def matched_model(settings: TrainSettings, vocab_size: int) -> Transformer:
    """The run's model on the meta device, its feed-forward so wide that the backend costs what the MHA rung costs.

    Raises:
        UserError: the backend cannot do the rung's shape, or cannot be matched to it.
    """
    context = settings.trainer.context
    shape = _rung_shape(settings, vocab_size)
    model = _meta_model(settings, shape)
    per_width = 3 * shape.d_model * shape.n_layers  # weights of SwiGLU's three matrices
    if settings.match == "none":
        return model
    if settings.match == "params":
        kind, target = "non-embedding parameters", settings.model.parameters
        cost = count_parameters(model).non_embedding
    else:
        kind, target = "training FLOPs per sequence", _rung_flops_per_sequence(settings, vocab_size).executed
        cost = training_flops_per_sequence(model, context).executed
        per_width *= 6 * context  # a multiply-add per weight and token, and twice that backward
    fixed = cost - per_width * shape.d_ff
    width = match_width(fixed, per_width, target, start=shape.d_ff, kind=kind)
    return model if width == shape.d_ff else _meta_model(settings, replace(shape, d_ff=width))


def _rung_shape(settings: TrainSettings, vocab_size: int) -> ModelShape:
    rung = settings.model
    return ModelShape(
        n_layers=rung.n_layers,
        d_model=rung.d_model,
        n_heads=rung.n_heads,
        n_kv_heads=rung.n_kv_heads,
        head_dim=rung.head_dim,
        d_ff=rung.d_ff,
        vocab_size=vocab_size,
        max_seq_len=settings.trainer.context,
        tie_embeddings=rung.tie_embeddings,
    )


def _rung_model(settings: TrainSettings, vocab_size: int) -> Transformer:
    """The rung with MHA, on the meta device: what is to be the same for all of its backends is made for this one."""
    with torch.device("meta"):
        mha = Transformer(_rung_shape(settings, vocab_size), "mha")
    mha.activation_checkpointing = settings.trainer.activation_checkpointing
    return mha


def _meta_model(settings: TrainSettings, shape: ModelShape) -> Transformer:
    """The model without memory: shapes only."""
    with torch.device("meta"):
        return build_model(settings, shape)


def build_model(settings: TrainSettings, shape: ModelShape) -> Transformer:
    """The model with its initial weights, on the current default device."""
    model = Transformer(shape, settings.attention, seed=settings.seed, init=settings.init)
    model.activation_checkpointing = settings.trainer.activation_checkpointing
    return model
