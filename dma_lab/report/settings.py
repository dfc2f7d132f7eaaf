"""The typed form of conf/report.yaml: checked once, at the entry point."""

from dataclasses import dataclass

from dma_lab.settings import STRICT, Count, Positive, Text


@dataclass(frozen=True)
class Larger:
    """A run that is to be trained."""

    __pydantic_config__ = STRICT
    name: Text | None
    params: Positive | None
    """Non-embedding."""
    tokens: Positive | None


@dataclass(frozen=True)
class ReportSettings:
    """Everything ``report.py`` takes."""

    __pydantic_config__ = STRICT
    runs: Text
    points: Text | None
    forecast: Text | None
    tune: Text | None
    """A file that the best learning rates are written to."""
    larger: Larger
    watch: bool
    watch_every: Count
    """Seconds."""
    output_dir: Text


@dataclass(frozen=True)
class StatusSettings:
    """Everything ``report.py status`` takes."""

    __pydantic_config__ = STRICT
    runs: Text
