"""``suite=paper``: the paper's benchmarks, or others that lm-eval has, with their data from the Hugging Face hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dma_lab.attention import RopeBase
from dma_lab.evaluation.checkpoint import TrainedRun
from dma_lab.evaluation.record import EvaluationRecord
from dma_lab.evaluation.session import Machine
from dma_lab.evaluation.suite import Cell, Job, Scores, Suite
from dma_lab.settings import Count, Text, Width

if TYPE_CHECKING:
    from dma_lab.evaluation.hub_tasks import HubTasks


@dataclass(frozen=True)
class PaperSuite(Suite):
    """A cell is one of lm-eval's tasks, or the mean of several."""

    name: Literal["paper"]
    tasks: Annotated[list[Text], Field(min_length=1)]
    num_fewshot: Annotated[int, Field(ge=0)] | None
    ruler_lengths: Annotated[list[Literal[4096, 8192, 16384, 32768, 65536, 131072]], Field(min_length=1)]
    max_length: Width | None
    limit: Count | None
    rope_base: RopeBase | None
    reported_as = "tasks"

    def jobs(self, run: TrainedRun, machine: Machine, record: EvaluationRecord) -> list[Job]:
        from dma_lab.evaluation.benchmarks import Benchmarks

        tasks = self.hub_tasks(run)
        benchmarks = Benchmarks(run, machine, record, self.limit, self.rope_base)
        if pending := [benchmark for benchmark in tasks.benchmarks() if benchmarks.is_pending(benchmark)]:
            tasks.check_reachable(pending)
        return benchmarks.jobs(tasks.benchmarks(), tasks.means())

    def hub_tasks(self, run: TrainedRun) -> "HubTasks":
        """Raises UserError where lm-eval has no task of a name."""
        from dma_lab.evaluation.hub_tasks import HubTasks

        return HubTasks(
            self.tasks,
            run,
            num_fewshot=self.num_fewshot,
            ruler_lengths=self.ruler_lengths,
            max_length=self.max_length or run.context,
        )

    def show(self, run: TrainedRun, found: Sequence[tuple[Cell, Scores]], folder: Path) -> None:
        from dma_lab.evaluation.benchmarks import show_benchmarks

        show_benchmarks(run, found, self.limit)
