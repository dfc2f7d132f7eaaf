"""The typed form of conf/evaluate.yaml and conf/suite/: checked once at the door."""

import json
from dataclasses import dataclass
from typing import Annotated, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from dma_lab.messages import UserError

_STRICT = ConfigDict(extra="forbid", strict=True)

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class GenerateSettings:
    """conf/suite/generate.yaml."""

    __pydantic_config__ = _STRICT
    name: Literal["generate"]
    prompts: list[str]
    prompts_file: str | None
    max_new_tokens: Count
    temperature: Annotated[float, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    seed: Seed
    rope_base: Positive | None


@dataclass(frozen=True)
class ContextSettings:
    """conf/suite/context.yaml."""

    __pydantic_config__ = _STRICT
    name: Literal["context"]
    lengths: Annotated[list[Count], Field(min_length=1)] | None
    stride: Count | None
    tokens: Count | None
    mask_documents: bool | None
    rope_base: Positive | None


@dataclass(frozen=True)
class NeedleSettings:
    """conf/suite/needle.yaml."""

    __pydantic_config__ = _STRICT
    name: Literal["needle"]
    kinds: Annotated[list[Literal["single", "multikey", "multivalue", "multiquery"]], Field(min_length=1)]
    values: Annotated[list[Literal["words", "numbers", "uuids"]], Field(min_length=1)]
    needles: Annotated[int, Field(ge=2, le=100)]
    lengths: Annotated[list[Count], Field(min_length=1)] | None
    depths: Annotated[list[Share], Field(min_length=1)]
    samples: Count
    seed: Seed
    haystack: str | None
    rope_base: Positive | None


@dataclass(frozen=True)
class PaperSettings:
    """conf/suite/paper.yaml."""

    __pydantic_config__ = _STRICT
    name: Literal["paper"]
    tasks: Annotated[list[str], Field(min_length=1)]
    num_fewshot: Annotated[int, Field(ge=0)] | None
    ruler_lengths: Annotated[list[Literal[4096, 8192, 16384, 32768, 65536, 131072]], Field(min_length=1)]
    max_length: Count | None
    limit: Count | None
    rope_base: Positive | None


@dataclass(frozen=True)
class LocalSettings:
    """conf/suite/local.yaml."""

    __pydantic_config__ = _STRICT
    name: Literal["local"]
    path: str | Annotated[list[str], Field(min_length=1)]
    max_length: Count | None
    limit: Count | None
    rope_base: Positive | None


Suite = GenerateSettings | ContextSettings | NeedleSettings | PaperSettings | LocalSettings


@dataclass(frozen=True)
class EvaluateSettings:
    """Everything ``evaluate.py`` takes."""

    __pydantic_config__ = _STRICT
    checkpoint: str
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "fp32", "bf16"]
    batch_tokens: Count
    suite: Annotated[Suite, Field(discriminator="name")]


def read_settings(config: DictConfig) -> EvaluateSettings:
    """The settings of a composed config.

    Raises:
        UserError: naming the first setting whose type or value cannot be.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(
            f"{error.full_key} must be given, as {error.full_key}=…; conf/suite/ says what it is."
        ) from error
    try:
        # As JSON, whose objects strict validation takes for dataclasses while it still takes no "3" for a 3.
        return TypeAdapter(EvaluateSettings).validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        if not path:  # the one JSON that json.dumps writes and JSON does not allow: half a surrogate pair
            raise UserError("A setting holds text that is not UTF-8 (half a surrogate pair): repair it.") from error
        if path[0] == "suite":
            del path[1:2]  # the union's member, which says nothing to a user
        setting = ".".join(part for part in path if not part.startswith("constrained-"))
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            raise UserError(f"{setting} is no setting here; see conf/evaluate.yaml and conf/suite/.") from error
        raise UserError(f"{setting}={first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}.") from error
