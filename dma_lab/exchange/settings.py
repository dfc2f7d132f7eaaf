"""The typed form of conf/export.yaml: checked once, at the entry point."""

from dataclasses import dataclass
from typing import Literal

from dma_lab.settings import STRICT, Text


@dataclass(frozen=True)
class ExportSettings:
    """Everything ``export.py`` takes."""

    __pydantic_config__ = STRICT
    checkpoint: Text
    to: Text
    format: Literal["auto", "stock", "custom"]
