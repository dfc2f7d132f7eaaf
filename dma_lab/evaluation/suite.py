"""The contract that every suite keeps: from its settings to cells, their scores and what is shown of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from dma_lab.attention import RopeBase
from dma_lab.evaluation.checkpoint import TrainedRun
from dma_lab.evaluation.record import EvaluationRecord
from dma_lab.evaluation.session import Machine
from dma_lab.model import Transformer
from dma_lab.settings import STRICT

Cell = dict[str, Any]
"""Everything that defines its scores but the weights and the machine, in plain values."""
Scores = dict[str, Any]
Form = Literal["needles", "contexts", "tasks"]
"""How the report shows cells: as heat maps by length and depth, as a curve by context length, as rows of a table."""

_SUITES: list[type["Suite"]] = []


def registered_suites() -> list[type["Suite"]]:
    return list(_SUITES)


def suites_reported_as(form: "Form") -> list[str]:
    """Names of the suites whose cells the report shows in this form."""
    return [get_args(suite.__annotations__["name"])[0] for suite in _SUITES if suite.reported_as == form]


@dataclass(frozen=True)
class Job:
    """Cells that are scored together."""

    cells: list[Cell]
    length: int
    """Tokens that the model has to take."""
    score: Callable[[Transformer, Callable[[float], None]], Sequence[Scores]]
    """Scores of the cells by the model, in their order; its second argument is told what share of the job is done."""
    cost: float = 1
    """Its part in all the work."""


class Suite(ABC):
    """A frozen dataclass whose fields are the settings of conf/suite/NAME.yaml, ``name: Literal["NAME"]`` first."""

    __pydantic_config__ = STRICT
    name: str
    rope_base: RopeBase | None
    title: ClassVar[str | None] = None
    """What the bar says that shows how much is done; no bar where there is none."""
    reported_as: ClassVar[Form | None] = None
    """None: the report does not show it."""

    def __init_subclass__(cls) -> None:
        _SUITES.append(cls)

    @abstractmethod
    def jobs(self, run: TrainedRun, machine: Machine, record: EvaluationRecord) -> list[Job]:
        """All the work, the part that ``record`` has included.

        Raises:
            UserError: for anything in the settings or the run that a user can fix.
        """

    @abstractmethod
    def show(self, run: TrainedRun, found: Sequence[tuple[Cell, Scores]], folder: Path) -> None:
        """Print the scores of all cells, in the jobs' order; figures go into ``folder``."""
