"""The typed form of conf/evaluate.yaml: checked once, at the entry point. A suite's own settings stand in its file."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Union

from omegaconf import DictConfig
from pydantic import Field

import dma_lab.evaluation.suites
import dma_lab.settings
from dma_lab.evaluation.suite import Suite, registered_suites
from dma_lab.settings import STRICT, Count, Text

if TYPE_CHECKING:
    AnySuite = Suite
else:
    AnySuite = Annotated[Union[tuple(registered_suites())], Field(discriminator="name")]  # noqa: UP007


@dataclass(frozen=True)
class EvaluateSettings:
    """Everything ``evaluate.py`` takes."""

    __pydantic_config__ = STRICT
    checkpoint: Text
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "fp32", "bf16"]
    batch_tokens: Count
    suite: AnySuite


def read_settings(config: DictConfig) -> EvaluateSettings:
    """The settings of a composed config.

    Raises:
        UserError: naming the first setting whose type or value cannot be.
    """
    return dma_lab.settings.read_settings(EvaluateSettings, config)
