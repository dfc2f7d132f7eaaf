"""A plan as text: three lines before training, or all of it as a table."""

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from dma_lab.train.hardware import Hardware
from dma_lab.train.memory import out_of_memory
from dma_lab.train.plan import RunPlan
from dma_lab.train.reading import recipe_rate
from dma_lab.train.rung import rung_name
from dma_lab.train.settings import TrainSettings

if TYPE_CHECKING:
    from dma_lab.train.probe import Estimate

_UNITS = (("days", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))


def short_plan(settings: TrainSettings, plan: RunPlan) -> str:
    """Three lines: what is trained, on what, at what cost."""
    shape, parameters = plan.shape, plan.parameters
    return (
        f"{settings.attention.label} at rung {rung_name(vars(settings.model))}: {parameters.non_embedding:,} "
        f"non-embedding parameters ({parameters.total:,} in all), {shape.n_layers} layers of {shape.d_model}, "
        f"{shape.n_heads} heads ({shape.n_kv_heads} key/value) of {shape.head_dim}, feed-forward {shape.d_ff}\n"
        f"{plan.tokens:,} tokens ({plan.tokens_per_parameter:.1f} a parameter) in {plan.steps:,} steps of "
        f"{plan.sequences_per_step} x {shape.max_seq_len}, {settings.schedule.name} at a learning rate of "
        f"{settings.optimizer.learning_rate:g}\n"
        f"{plan.flops.executed:.3g} FLOP executed, {plan.flops.dense_equivalent:.3g} dense-equivalent"
    )


def print_plan(settings: TrainSettings, plan: RunPlan, hardware: Hardware, time: str) -> None:
    """The whole plan as a table on stdout; ``time`` is what it says of that."""
    shape, parameters, memory = plan.shape, plan.parameters, plan.memory
    token_bytes = 2 if shape.vocab_size <= 2**16 else 4
    rows: list[tuple[str, str] | None] = [
        ("attention", _options(settings.attention.written())),
        ("rung", f"{rung_name(vars(settings.model))}, matched to the MHA rung by: {settings.match}"),
        (
            "keys per query",
            "none: a state of constant size"
            if plan.keys_per_query is None
            else f"{plan.keys_per_query:,.1f} of {(shape.max_seq_len + 1) / 2:,.1f} (means over the context)",
        ),
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
            f"{plan.accumulate} micro-batch(es) on {settings.trainer.processes} device(s)",
        ),
        (
            "learning rate",
            _learning_rate(settings),
        ),
        ("tokens on disk", f"{_bytes(plan.tokens * token_bytes)} for one pass"),
        None,
        ("FLOP, executed", f"{plan.flops.executed:.4g}"),
        ("FLOP, dense-equivalent", f"{plan.flops.dense_equivalent:.4g}"),
        None,
        ("memory: weights", _bytes(memory.weights)),
        ("memory: gradients", f"{_bytes(memory.gradients)} beside activations"),
        ("memory: optimizer", _bytes(memory.optimizer)),
        ("memory: activations", f"{_bytes(memory.activations)} (estimate, scores not stored)"),
        ("memory: total", f"{_bytes(memory.total)} per device"),
        None,
        ("device", f"{settings.trainer.processes} x {hardware.name}, {hardware.precision}"),
        ("time", time),
    ]
    table = Table(title=f"plan: {settings.study}", show_header=False, title_justify="left")
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    Console().print(table)


def probed_time(estimate: "Estimate") -> str:
    """What a probe says of a run's time, from its first step to its last score."""
    unit, size = next((unit, size) for unit, size in _UNITS if estimate.seconds >= 2 * size or size == 1)
    low, middle, high = (
        f"{part / size:,.0f}" if estimate.seconds >= 10 * size else f"{part / size:.1f}"
        for part in (estimate.low, estimate.seconds, estimate.high)
    )
    parts = [f"validation {_duration(estimate.validation)}"]
    if estimate.compiling:
        parts.append(f"compiling {_duration(estimate.compiling)}")
    return (
        f"about {middle} {unit} ({low} to {high}), of which {', '.join(parts)} "
        f"(from {estimate.steps:,} steps here; reading the data not included)"
    )


def unknown_time(settings: TrainSettings, plan: RunPlan, hardware: Hardware) -> str:
    """What is said where the device had no memory left for the steps that were to be timed."""
    devices = settings.trainer.processes
    if settings.trainer.strategy == "fsdp" and devices > 1:
        return (
            f"not known: steps are timed on one device, and it has no memory for what {devices} are to share; "
            "flops_per_second=... plans at a rate that you state"
        )
    return f"not known: {out_of_memory(plan, devices, hardware)}"


def stated_time(plan: RunPlan, flops_per_second: float, devices: int) -> str:
    """The time at a rate that the user states."""
    seconds = plan.flops.executed / (flops_per_second * devices)
    return f"{_duration(seconds)} (at {flops_per_second:.3g} executed FLOP/s per device, as stated)"


def _learning_rate(settings: TrainSettings) -> str:
    rate, recipe = settings.optimizer.learning_rate, recipe_rate(settings)
    beside = "the recipe's" if rate == recipe else f"the recipe's would be {recipe:g}"
    return f"{rate:g} peak, {settings.schedule.name} ({beside})"


def _budget(settings: TrainSettings) -> str:
    if settings.tokens is not None:
        return f"{settings.tokens:,} tokens"
    if settings.flops is not None:
        return f"{settings.flops:.4g} FLOP of the MHA rung, dense-equivalent: every backend sees its tokens"
    return f"{settings.tokens_per_parameter:g} tokens per non-embedding parameter of the MHA rung"


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
