"""The typed form of conf/train.yaml: checked once at the door, plain values from there on."""

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from dma_lab.data.mqar import RecallSettings
from dma_lab.data.settings import DataSettings
from dma_lab.messages import UserError

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_UNION_MEMBER = re.compile(r"int|float|str|bool|literal\['auto'\]|list\[.*\]|<.*>")

Count = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class RungSettings:
    """A rung of the ladder: conf/model/."""

    __pydantic_config__ = _STRICT
    name: str
    n_layers: Count
    d_model: Count
    n_heads: Count
    n_kv_heads: Count
    head_dim: Count
    d_ff: Count
    vocab_size: Count
    tie_embeddings: bool
    context: Count
    tokens_per_step: Count
    learning_rate: Positive


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW: conf/optimizer/."""

    __pydantic_config__ = _STRICT
    name: Literal["adamw"]
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    eps: Positive
    gradient_clip: Positive


@dataclass(frozen=True)
class ScheduleSettings:
    """Shape of the learning rate over the run; fractions of its steps, and of the peak: conf/schedule/."""

    __pydantic_config__ = _STRICT
    name: Literal["wsd", "cosine"]
    warmup_fraction: Fraction
    warmup_steps: Annotated[int, Field(ge=0)] | None
    """Overrides ``warmup_fraction``: a warm-up that is the same for every budget."""
    decay_fraction: Fraction
    final_fraction: Fraction
    branches: Annotated[list[Positive], Field(min_length=1)] | None
    """Multiples of the budget at which a run of its own decays (dma_lab/train/branches.py)."""


@dataclass(frozen=True)
class TrainerSettings:
    """How training is carried out: conf/trainer/."""

    __pydantic_config__ = _STRICT
    context: Count
    tokens_per_step: Count
    micro_batch_sequences: Count | None
    device: Literal["auto", "cpu", "cuda"]
    devices: Count
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["auto"] | bool
    log_every: Count
    validate_every: Count
    validation_tokens: Count
    checkpoint_every: Count
    loader_workers: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class LoggerSettings:
    """Where metrics go beside the run's directory: conf/logger/."""

    __pydantic_config__ = _STRICT
    name: Literal["local", "wandb"]
    project: str | None
    entity: str | None


def _kind_of_data(node: Any) -> str:
    """Which settings a `data` node is held against, so that an error is about those alone."""
    source = node.get("source") if isinstance(node, dict) else getattr(node, "source", None)
    return "<recall>" if source == "mqar" else "<text>"


@dataclass(frozen=True)
class TrainSettings:
    """Everything ``train.py`` and ``plan.py`` take."""

    __pydantic_config__ = _STRICT
    study: str
    seed: Annotated[int, Field(ge=0)]
    match: Literal["params", "flops", "none"]
    tokens_per_parameter: Positive
    tokens: Count | None
    flops: Positive | None
    """Budget in the dense-equivalent FLOP of the MHA rung, so that all backends of a rung train on the same tokens."""
    output_dir: str
    model: RungSettings
    attention: dict[str, Any]
    data: Annotated[
        Annotated[DataSettings, Tag("<text>")] | Annotated[RecallSettings, Tag("<recall>")],
        Discriminator(_kind_of_data),
    ]
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    trainer: TrainerSettings
    logger: LoggerSettings


def read_settings(config: DictConfig) -> TrainSettings:
    """The settings of a composed config.

    Raises:
        UserError: naming the first setting whose type or value cannot be.
    """
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    try:
        # As JSON, whose objects strict validation takes for dataclasses while it still takes no "3" for a 3.
        settings = TypeAdapter(TrainSettings).validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        # A union's members follow the setting's own path; they say nothing to a user.
        setting = ".".join(str(part) for part in first["loc"] if not _UNION_MEMBER.fullmatch(str(part)))
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            raise UserError(f"{setting} is no setting here; see conf/ for those there are.") from error
        if first["type"] == "missing":
            raise UserError(f"{setting} is missing; give it, as in conf/{setting.partition('.')[0]}/.") from error
        raise UserError(f"{setting}={first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}.") from error
    _check_values(settings)
    return settings


def _check_values(settings: TrainSettings) -> None:
    model, trainer, schedule = settings.model, settings.trainer, settings.schedule
    if not settings.study or "/" in settings.study:
        raise UserError(f"study={settings.study} names the run's directory: give a word without a slash.")
    if "name" not in settings.attention:
        raise UserError("attention.name is missing: choose a backend, as in attention=dma.")
    if model.n_heads * model.head_dim != model.d_model:
        raise UserError(
            f"model.n_heads={model.n_heads} of model.head_dim={model.head_dim} make {model.n_heads * model.head_dim} "
            f"dimensions and model.d_model={model.d_model} carries {model.d_model}; make the product equal to it."
        )
    if model.n_heads % model.n_kv_heads:
        raise UserError(
            f"model.n_kv_heads={model.n_kv_heads} does not divide model.n_heads={model.n_heads}; choose one that does."
        )
    if isinstance(settings.data, RecallSettings) and settings.data.size.length != trainer.context:
        raise UserError(
            f"data.size.length={settings.data.size.length} is not trainer.context={trainer.context}; an example is a "
            "whole sequence, so set trainer.context alone, or as the mqar experiments do."
        )
    if trainer.tokens_per_step % trainer.context:
        raise UserError(
            f"trainer.tokens_per_step={trainer.tokens_per_step} is not a multiple of "
            f"trainer.context={trainer.context}; a step takes whole sequences."
        )
    sequences, micro = trainer.tokens_per_step // trainer.context, trainer.micro_batch_sequences
    if sequences % trainer.devices or (micro is not None and (micro < 1 or sequences // trainer.devices % micro)):
        raise UserError(
            f"a step's {sequences} sequences do not split over trainer.devices={trainer.devices} into micro-batches of "
            f"trainer.micro_batch_sequences={micro}; choose numbers that divide it."
        )
    if settings.tokens is not None and settings.flops is not None:
        raise UserError(
            f"tokens={settings.tokens} and flops={settings.flops:g} are both the run's budget; set one and leave the "
            "other null."
        )
    if settings.tokens is not None and settings.tokens < trainer.tokens_per_step:
        raise UserError(f"tokens={settings.tokens} is less than one step of {trainer.tokens_per_step}; give more.")
    if schedule.branches is not None:
        _check_branches(schedule)
    if schedule.warmup_steps is None and schedule.warmup_fraction + schedule.decay_fraction > 1 + 1e-9:
        raise UserError(
            f"schedule.warmup_fraction={schedule.warmup_fraction} and schedule.decay_fraction="
            f"{schedule.decay_fraction} sum to more than the whole run; make them sum to at most 1."
        )


def _check_branches(schedule: ScheduleSettings) -> None:
    branches = schedule.branches or []
    if schedule.name != "wsd":
        raise UserError(
            f"schedule.branches={branches} need schedule=wsd: under schedule.name={schedule.name} every learning rate "
            "depends on the budget, and budgets share nothing."
        )
    if not schedule.decay_fraction:
        raise UserError(
            f"schedule.branches={branches} need schedule.decay_fraction above 0: without a decay there is nothing to "
            "branch into."
        )
    if len(set(branches)) < len(branches):
        raise UserError(f"schedule.branches={branches} names a budget twice; name each once.")
