"""The typed form of conf/report.yaml: checked once at the door."""

from dataclasses import dataclass

from dma_lab.settings import STRICT, Text


@dataclass(frozen=True)
class ReportSettings:
    """Everything ``report.py`` takes."""

    __pydantic_config__ = STRICT
    runs: Text
    points: Text | None
    output_dir: Text
