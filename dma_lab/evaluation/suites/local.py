"""``suite=local``: question sets of one's own, without a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dma_lab.attention import RopeBase
from dma_lab.evaluation.checkpoint import TrainedRun
from dma_lab.evaluation.record import EvaluationRecord
from dma_lab.evaluation.session import Machine
from dma_lab.evaluation.suite import Cell, Job, Scores, Suite
from dma_lab.settings import Count, Text, Width


@dataclass(frozen=True)
class LocalSuite(Suite):
    """A cell is a file of questions."""

    name: Literal["local"]
    path: Text | Annotated[list[Text], Field(min_length=1)]
    max_length: Width | None
    limit: Count | None
    rope_base: RopeBase | None
    reported_as = "tasks"

    def jobs(self, run: TrainedRun, machine: Machine, record: EvaluationRecord) -> list[Job]:
        from dma_lab.evaluation.benchmarks import Benchmarks
        from dma_lab.evaluation.local_sets import local_benchmarks

        sets = local_benchmarks(self.path, self.max_length or run.context)
        return Benchmarks(run, machine, record, self.limit, self.rope_base).jobs(sets)

    def show(self, run: TrainedRun, found: Sequence[tuple[Cell, Scores]], folder: Path) -> None:
        from dma_lab.evaluation.benchmarks import show_benchmarks

        show_benchmarks(run, found, self.limit)
