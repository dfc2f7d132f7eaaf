"""The typed form of conf/evaluate.yaml and conf/suite/: checked once at the door."""

from dataclasses import dataclass
from typing import Annotated, Literal

from omegaconf import DictConfig
from pydantic import Field

import dma_lab.settings
from dma_lab.attention import RopeBase
from dma_lab.settings import STRICT, Count, Fraction, Seed, Text, Width


@dataclass(frozen=True)
class GenerateSettings:
    """conf/suite/generate.yaml."""

    __pydantic_config__ = STRICT
    name: Literal["generate"]
    prompts: list[str]
    prompts_file: Text | None
    max_new_tokens: Width
    temperature: Annotated[float, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    seed: Seed
    rope_base: RopeBase | None


@dataclass(frozen=True)
class ContextSettings:
    """conf/suite/context.yaml."""

    __pydantic_config__ = STRICT
    name: Literal["context"]
    lengths: Annotated[list[Width], Field(min_length=1)] | None
    stride: Count | None
    tokens: Count | None
    mask_documents: bool | None
    rope_base: RopeBase | None


@dataclass(frozen=True)
class NeedleSettings:
    """conf/suite/needle.yaml."""

    __pydantic_config__ = STRICT
    name: Literal["needle"]
    kinds: Annotated[list[Literal["single", "multikey", "multivalue", "multiquery"]], Field(min_length=1)]
    values: Annotated[list[Literal["words", "numbers", "uuids"]], Field(min_length=1)]
    needles: Annotated[int, Field(ge=2, le=100)]
    lengths: Annotated[list[Width], Field(min_length=1)] | None
    depths: Annotated[list[Fraction], Field(min_length=1)]
    samples: Count
    seed: Seed
    haystack: Text | None
    rope_base: RopeBase | None


@dataclass(frozen=True)
class PaperSettings:
    """conf/suite/paper.yaml."""

    __pydantic_config__ = STRICT
    name: Literal["paper"]
    tasks: Annotated[list[Text], Field(min_length=1)]
    num_fewshot: Annotated[int, Field(ge=0)] | None
    ruler_lengths: Annotated[list[Literal[4096, 8192, 16384, 32768, 65536, 131072]], Field(min_length=1)]
    max_length: Width | None
    limit: Count | None
    rope_base: RopeBase | None


@dataclass(frozen=True)
class LocalSettings:
    """conf/suite/local.yaml."""

    __pydantic_config__ = STRICT
    name: Literal["local"]
    path: Text | Annotated[list[Text], Field(min_length=1)]
    max_length: Width | None
    limit: Count | None
    rope_base: RopeBase | None


Suite = GenerateSettings | ContextSettings | NeedleSettings | PaperSettings | LocalSettings


@dataclass(frozen=True)
class EvaluateSettings:
    """Everything ``evaluate.py`` takes."""

    __pydantic_config__ = STRICT
    checkpoint: Text
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "fp32", "bf16"]
    batch_tokens: Count
    suite: Annotated[Suite, Field(discriminator="name")]


def read_settings(config: DictConfig) -> EvaluateSettings:
    """The settings of a composed config.

    Raises:
        UserError: naming the first setting whose type or value cannot be.
    """
    return dma_lab.settings.read_settings(EvaluateSettings, config)
