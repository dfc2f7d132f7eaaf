"""The typed form of conf/report.yaml: checked once, at the entry point."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from omegaconf import DictConfig
from pydantic import Field

from dma_lab.messages import UserError
from dma_lab.settings import STRICT, Count, Positive, Text, read_settings

Texts = Annotated[list[Text], Field(min_length=1)]


@dataclass(frozen=True)
class Larger:
    """A run that is to be trained."""

    __pydantic_config__ = STRICT
    name: Text | None
    """A rung's, or any where both others are given."""
    params: Positive | None
    """Non-embedding; None: the rung's."""
    tokens: Positive | None
    """None: 20 per parameter, as train.py takes unless told otherwise."""


@dataclass(frozen=True)
class ReportSettings:
    """Everything ``report.py`` takes."""

    __pydantic_config__ = STRICT
    runs: Text | Texts
    points: Text | None
    forecast: Text | Texts | None
    tune: Text | None
    """A file that the best learning rates are written to."""
    archive: Text | None
    """A file that the runs are packed to."""
    larger: Larger
    watch: bool
    watch_every: Count
    """Seconds."""
    output_dir: Text

    @property
    def folders(self) -> list[Path]:
        """Of runs."""
        return [Path(folder) for folder in _listed(self.runs)]

    @property
    def forecasts(self) -> list[Path]:
        """Files of them."""
        return [Path(file) for file in _listed(self.forecast or [])]


def read_report_settings(config: DictConfig) -> ReportSettings:
    """Of a composed config.

    Raises:
        UserError: naming the first setting that cannot be, or that would be left undone beside another.
    """
    settings = read_settings(ReportSettings, config)
    alone = {"points": settings.points, "tune": settings.tune, "archive": settings.archive}
    watch = "true" if settings.watch else None
    of_the_page = {"forecast": settings.forecast, "larger": settings.larger.name, "watch": watch}
    given = {name: value for name, value in (alone | of_the_page).items() if value is not None}
    first, *others = given or [""]
    if first in alone and others:
        raise UserError(
            f"{first}={given[first]} does that alone, and {others[0]}={given[others[0]]} would be left undone; give "
            "the command once for each."
        )
    if settings.forecast is None and settings.larger != Larger(None, None, None):
        raise UserError("larger names a run to forecast, and no file is given for that: add forecast=FILE.json.")
    return settings


def _listed(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


@dataclass(frozen=True)
class StatusSettings:
    """Everything ``report.py status`` takes."""

    __pydantic_config__ = STRICT
    runs: Text
