"""The typed form of conf/evaluate.yaml: checked once, at the entry point. A suite's own settings stand in its file."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Union

from pydantic import Field

import dma_lab.evaluation.suites  # noqa: F401 (they register themselves)
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
