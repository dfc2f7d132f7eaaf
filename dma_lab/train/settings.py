"""The typed form of conf/train.yaml: checked once, at the entry point, plain values from there on."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PlainValidator, Tag

from dma_lab.attention import AttentionConfig
from dma_lab.data.mqar import RecallSettings
from dma_lab.data.settings import DataSettings
from dma_lab.model import Initialisation
from dma_lab.model.ladder import reference_parameters
from dma_lab.run_summary import Tuned
from dma_lab.settings import STRICT, Count, CountOrNone, Fraction, Name, Positive, Seed, Text, Tokens, Width

Layers = Annotated[int, Field(gt=0, le=512)]
Multiple = Annotated[float, Field(gt=0, le=1e6)]
Betas = Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]


@dataclass(frozen=True)
class RungSettings:
    """A rung of the ladder: conf/model/."""

    __pydantic_config__ = STRICT
    name: Name
    n_layers: Layers
    d_model: Width
    n_heads: Width
    n_kv_heads: Width
    head_dim: Width
    d_ff: Width
    vocab_size: Width
    tie_embeddings: bool
    context: Width

    @property
    def parameters(self) -> int:
        """Non-embedding, with MHA."""
        return reference_parameters(
            self.n_layers, self.d_model, self.n_heads, self.n_kv_heads, self.head_dim, self.d_ff
        )


@dataclass(frozen=True)
class AdamWSettings:
    """AdamW: conf/optimizer/adamw.yaml."""

    __pydantic_config__ = STRICT
    name: Literal["adamw"]
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    betas: Betas
    eps: Positive
    gradient_clip: Positive


@dataclass(frozen=True)
class MuonSettings:
    """Muon for the layers' matrices, AdamW for the rest: conf/optimizer/muon.yaml."""

    __pydantic_config__ = STRICT
    name: Literal["muon"]
    learning_rate: Positive
    """Of the matrices."""
    adamw_multiplier: Positive
    """AdamW's learning rate as a multiple of it."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    betas: Betas
    eps: Positive
    gradient_clip: Positive


@dataclass(frozen=True)
class ScheduleSettings:
    """Shape of the learning rate over the run; fractions of its steps, and of the peak: conf/schedule/."""

    __pydantic_config__ = STRICT
    name: Literal["wsd", "cosine"]
    warmup_fraction: Fraction
    warmup_steps: CountOrNone | None
    """Overrides ``warmup_fraction``: the same warm-up for every budget."""
    decay_fraction: Fraction
    final_fraction: Fraction
    branches: Annotated[list[Multiple], Field(min_length=1, max_length=64)] | None
    """Multiples of the budget at which a separate run decays (dma_lab/train/branches.py)."""


@dataclass(frozen=True)
class TrainerSettings:
    """How training is carried out: conf/trainer/."""

    __pydantic_config__ = STRICT
    context: Width
    tokens_per_step: Count
    micro_batch_sequences: Count | None
    activation_checkpointing: bool
    device: Literal["auto", "cpu", "cuda"]
    devices: Annotated[int, Field(gt=0, le=1024)]
    num_nodes: Annotated[int, Field(gt=0, le=1024)]
    """Machines with so many devices each."""
    strategy: Literal["ddp", "fsdp"]
    """What several devices hold: each the whole state, or each a part of it."""
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["auto"] | bool
    log_every: Count
    validate_every: Count
    validation_tokens: Count
    checkpoint_every: Count
    loader_workers: Annotated[int, Field(ge=0, le=256)]

    @property
    def processes(self) -> int:
        """That train together: one for each device of every machine."""
        return self.devices * self.num_nodes


@dataclass(frozen=True)
class LoggerSettings:
    """Where metrics go beside the run's directory: conf/logger/."""

    __pydantic_config__ = STRICT
    name: Literal["local", "wandb", "tensorboard", "trackio"]
    project: Text | None
    entity: Text | None


def _kind_of_data(node: Any) -> str:
    """Which settings class validates a `data` node, so that an error names only its settings."""
    source = node.get("source") if isinstance(node, dict) else getattr(node, "source", None)
    return "<recall>" if source == "mqar" else "<text>"


@dataclass(frozen=True)
class TrainSettings:
    """Everything ``train.py`` takes."""

    __pydantic_config__ = STRICT
    study: Name
    seed: Seed
    match: Literal["params", "flops", "none"]
    tokens_per_parameter: Positive
    tokens: Tokens | None
    flops: Positive | None
    """Budget in the dense-equivalent FLOP of the MHA rung, so that all backends of a rung train on the same tokens."""
    window: Count | None
    """Of every backend that has one; once read, it stands in their nodes, and is null for the others' sake."""
    tuned: Text | None
    """A file of tuned rates (dma_lab/train/tuned.py); once read, its name and digest."""
    init_from: Text | None
    """A run or a folder whose weights the run begins with."""
    output_dir: Text
    model: RungSettings
    init: Initialisation
    attention: Annotated[AttentionConfig, PlainValidator(AttentionConfig.read)]
    data: Annotated[
        Annotated[DataSettings, Tag("<text>")] | Annotated[RecallSettings, Tag("<recall>")],
        Discriminator(_kind_of_data),
    ]
    optimizer: Annotated[AdamWSettings | MuonSettings, Discriminator("name")]
    schedule: ScheduleSettings
    trainer: TrainerSettings
    logger: LoggerSettings
    tuning: Tuned | None = field(default=None, kw_only=True)
    """What the file of tuned rates had for the run: of no config file, for the run's summary."""

    def written(self) -> dict[str, Any]:
        """As a config file has them."""
        settings = dataclasses.asdict(self) | {"attention": self.attention.written()}
        del settings["tuning"]
        return settings


@dataclass(frozen=True)
class PlanSettings(TrainSettings):
    """Everything ``plan.py`` takes."""

    flops_per_second: Positive | None
