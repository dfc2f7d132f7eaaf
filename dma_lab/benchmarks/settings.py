"""The typed form of conf/bench_*.yaml: checked once at the entry point."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from dma_lab.settings import STRICT, Count, Seed, Text, Width

Shape = Annotated[list[Width], Field(min_length=2, max_length=2)]
Widths = Annotated[list[Width], Field(min_length=1)]
Workers = Annotated[int, Field(gt=0, le=256)]


@dataclass(frozen=True)
class KernelsSettings:
    """conf/bench_kernels.yaml."""

    __pydantic_config__ = STRICT
    shapes: Annotated[list[Shape], Field(min_length=1)]
    heads: Width
    kv_heads: Widths
    head_dim: Width
    scores_at: Shape
    flex: bool
    results_dir: Text


@dataclass(frozen=True)
class NsaSettings:
    """conf/bench_nsa.yaml."""

    __pydantic_config__ = STRICT
    lengths: Widths
    heads: Width
    kv_heads: Width
    head_dim: Width
    results_dir: Text


@dataclass(frozen=True)
class DecodeSettings:
    """conf/bench_decode.yaml."""

    __pydantic_config__ = STRICT
    batches: Widths
    histories: Widths
    heads: Width
    kv_heads: Width
    head_dim: Width
    window: Width
    results_dir: Text


@dataclass(frozen=True)
class TrainingSettings:
    """conf/bench_training.yaml."""

    __pydantic_config__ = STRICT
    backends: Annotated[list[Text], Field(min_length=1)]
    contexts: Widths
    rung: Text
    stock: bool
    steps: Count
    tokens_per_step: Count | None
    overrides: list[Text]
    results_dir: Text


@dataclass(frozen=True)
class GpuTestsSettings:
    """conf/bench_gpu_tests.yaml."""

    __pydantic_config__ = STRICT
    workers: Workers
    results_dir: Text


@dataclass(frozen=True)
class FaultsSettings:
    """conf/bench_faults.yaml."""

    __pydantic_config__ = STRICT
    workers: Workers
    seed: Seed
    results_dir: Text
