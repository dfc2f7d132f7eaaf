"""What a run will be and cost, worked out before anything is spent."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

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

    steps = max(1, round(_budget_tokens(settings, vocab_size, reference) / trainer.tokens_per_step))
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
    tokens = settings.flops / _rung_flops_per_sequence(settings, vocab_size).dense_equivalent * context
    if tokens < step:
        raise UserError(
            f"flops={settings.flops:g} pays for {tokens:,.0f} tokens of the MHA rung {settings.model.name}, less than "
            f"one step of {step:,}; give at least {settings.flops * step / tokens:.3g}."
        )
    return tokens


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
            lambda d_ff: count_parameters(meta_model(settings, shape(d_ff))).non_embedding,
            target,
            start=start,
            kind="non-embedding parameters",
        )
    else:
        context = settings.trainer.context
        target = _rung_flops_per_sequence(settings, vocab_size).executed
        width = match_width(
            lambda d_ff: training_flops_per_sequence(meta_model(settings, shape(d_ff)), context).executed,
            target,
            start=start,
            kind="training FLOPs a sequence",
        )
    return shape(width)


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
        micro = max(size for size in range(1, sequences + 1) if sequences % size == 0 and size <= max(1, fit))
    return sequences // micro


def short_plan(settings: TrainSettings, plan: RunPlan) -> str:
    """Three lines: what is trained, on what, at what cost."""
    shape, parameters = plan.shape, plan.parameters
    return (
        f"{settings.attention['name']} at rung {settings.model.name}: {parameters.non_embedding:,} non-embedding "
        f"parameters ({parameters.total:,} in all), {shape.n_layers} layers of {shape.d_model}, "
        f"{shape.n_heads} heads ({shape.n_kv_heads} key/value) of {shape.head_dim}, feed-forward {shape.d_ff}\n"
        f"{plan.tokens:,} tokens ({plan.tokens_per_parameter:.1f} a parameter) in {plan.steps:,} steps of "
        f"{plan.sequences_per_step} x {shape.max_seq_len}, {settings.schedule.name} at a learning rate of "
        f"{settings.optimizer.learning_rate:g}\n"
        f"{plan.flops.executed:.3g} FLOP executed, {plan.flops.dense_equivalent:.3g} dense-equivalent"
    )


def print_plan(settings: TrainSettings, plan: RunPlan, hardware: Hardware, seconds: float, seconds_source: str) -> None:
    """The whole plan as a table on stdout."""
    shape, parameters, memory = plan.shape, plan.parameters, plan.memory
    token_bytes = 2 if shape.vocab_size <= 2**16 else 4
    rows: list[tuple[str, str] | None] = [
        ("attention", _options(settings.attention)),
        ("rung", f"{settings.model.name}, matched to the MHA rung by: {settings.match}"),
        ("layers x width", f"{shape.n_layers} x {shape.d_model}"),
        ("heads", f"{shape.n_heads} query, {shape.n_kv_heads} key/value, of {shape.head_dim}"),
        ("feed-forward width", f"{shape.d_ff:,} (MHA rung {settings.model.d_ff:,})"),
        ("vocabulary", f"{shape.vocab_size:,}"),
        None,
        ("parameters: embedding", f"{parameters.embedding:,}"),
        ("parameters: attention", f"{parameters.attention:,}"),
        ("parameters: feed-forward", f"{parameters.feed_forward:,}"),
        ("parameters: norms", f"{parameters.norms:,}"),
        ("parameters: output head", f"{parameters.head:,}" + (" (tied)" if shape.tie_embeddings else "")),
        ("parameters: total", f"{parameters.total:,}"),
        (
            "parameters: non-embedding",
            f"{parameters.non_embedding:,} (MHA rung {plan.reference_parameters:,}, "
            f"{parameters.non_embedding / plan.reference_parameters - 1:+.2%})",
        ),
        None,
        ("budget", _budget(settings)),
        ("tokens", f"{plan.tokens:,} ({plan.tokens_per_parameter:.1f} a non-embedding parameter)"),
        ("steps", f"{plan.steps:,}"),
        (
            "batch",
            f"{plan.tokens_per_step:,} tokens: {plan.sequences_per_step} sequences of {shape.max_seq_len}, "
            f"{plan.accumulate} micro-batch(es) on {settings.trainer.devices} device(s)",
        ),
        ("learning rate", f"{settings.optimizer.learning_rate:g} peak, {settings.schedule.name}"),
        ("tokens on disk", f"{_bytes(plan.tokens * token_bytes)} for one pass"),
        None,
        ("FLOP, executed", f"{plan.flops.executed:.4g}"),
        ("FLOP, dense-equivalent", f"{plan.flops.dense_equivalent:.4g}"),
        None,
        ("memory: weights", _bytes(memory.weights)),
        ("memory: gradients", _bytes(memory.gradients)),
        ("memory: optimizer", _bytes(memory.optimizer)),
        ("memory: activations", f"{_bytes(memory.activations)} (estimate, scores not stored)"),
        ("memory: total", f"{_bytes(memory.total)} a device"),
        None,
        ("device", f"{settings.trainer.devices} x {hardware.name}, {hardware.precision}"),
        ("time", f"{_duration(seconds)} ({seconds_source})"),
    ]
    table = Table(title=f"plan: {settings.study}", show_header=False, title_justify="left")
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    Console().print(table)


def _budget(settings: TrainSettings) -> str:
    if settings.tokens is not None:
        return f"{settings.tokens:,} tokens"
    if settings.flops is not None:
        return f"{settings.flops:.4g} FLOP of the MHA rung, dense-equivalent: every backend sees its tokens"
    return f"{settings.tokens_per_parameter:g} tokens a non-embedding parameter of the MHA rung"


def _options(attention: dict[str, object]) -> str:
    options = ", ".join(f"{name}={value}" for name, value in attention.items() if name != "name")
    return f"{attention['name']} ({options})" if options else str(attention["name"])


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.4g} {unit}"
        count /= 1024
    return f"{count:,.4g} TiB"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
