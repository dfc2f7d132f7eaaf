"""The typed form of conf/export.yaml: checked once, at the entry point."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from dma_lab.settings import STRICT, Text


@dataclass(frozen=True)
class ExportSettings:
    """Everything ``export.py`` takes."""

    __pydantic_config__ = STRICT
    checkpoint: Text
    to: Text
    license: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$")] | None
    """An identifier, in lower case on the hub; none is made up."""
    format: Literal["auto", "stock", "custom"]
