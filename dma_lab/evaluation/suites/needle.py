"""``suite=needle``: facts hidden in long text and asked for, by kind, length and depth, with a figure of each kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from dma_lab.attention import RopeBase
from dma_lab.data.finding import user_path
from dma_lab.evaluation import ruler
from dma_lab.evaluation.checkpoint import TrainedRun
from dma_lab.evaluation.haystack import Haystack
from dma_lab.evaluation.needle import Kind, NeedleTask, ValueKind
from dma_lab.evaluation.needle_scores import score_samples
from dma_lab.evaluation.record import EvaluationRecord
from dma_lab.evaluation.session import Machine, show
from dma_lab.evaluation.suite import Cell, Job, Scores, Suite
from dma_lab.messages import warn_once
from dma_lab.model import Transformer
from dma_lab.settings import Count, Fraction, Seed, Text, Width


@dataclass(frozen=True)
class NeedleSuite(Suite):
    """A cell is a kind of needle and of value, at one length and depth."""

    name: Literal["needle"]
    kinds: Annotated[list[Kind], Field(min_length=1)]
    values: Annotated[list[ValueKind], Field(min_length=1)]
    needles: Annotated[int, Field(ge=2, le=100)]
    lengths: Annotated[list[Width], Field(min_length=1)] | None
    depths: Annotated[list[Fraction], Field(min_length=1)]
    samples: Count
    seed: Seed
    haystack: Text | None
    rope_base: RopeBase | None
    title = "looking for needles"
    reported_as = "needles"

    def jobs(self, run: TrainedRun, machine: Machine, record: EvaluationRecord) -> list[Job]:
        data, tokenizer = run.data, run.data.load_tokenizer()
        if self.haystack is None:
            haystack = Haystack.of_validation(data)
        else:
            haystack = Haystack.of_file(user_path(self.haystack, "suite.haystack"), tokenizer)
        options: dict[str, Any] = {"needles": self.needles, "samples": self.samples, "seed": self.seed}
        same = {**options, "haystack": haystack.digest, "rope_base": self.rope_base or run.rope_base}
        tasks = [
            NeedleTask(kind, values, haystack=haystack, tokenizer=tokenizer, **options)
            for kind in dict.fromkeys(self.kinds)
            for values in dict.fromkeys(self.values)
        ]

        def score(task: NeedleTask, cell: Cell, model: Transformer, advance: Callable[[float], None]) -> list[Scores]:
            scores = score_samples(
                model,
                [task.sample(cell["length"], cell["depth"], index) for index in range(self.samples)],
                tokenizer,
                vocab_size=data.vocab_size,
                eot_id=data.eot_id,
                batch_tokens=machine.batch_tokens,
                on_samples=lambda count: advance(count / self.samples),
            )
            return [scores]

        jobs, lengths = [], _lengths(run, self.lengths, tasks)
        for task in tasks:
            for length in lengths:
                for depth in sorted(set(self.depths)):
                    cell = {"kind": task.kind, "values": task.values, "length": length, "depth": depth, **same}
                    jobs.append(Job([cell], length, partial(score, task, cell), cost=length))
        return jobs

    def show(self, run: TrainedRun, found: Sequence[tuple[Cell, Scores]], folder: Path) -> None:
        # Here, for Matplotlib takes a second that other suites need not wait.
        from dma_lab.evaluation.needle_figure import draw_needles

        for kind, values in dict.fromkeys((cell["kind"], cell["values"]) for cell, _ in found):
            own = [(cell, scores) for cell, scores in found if (cell["kind"], cell["values"]) == (kind, values)]
            show(
                f"{run.path.name}: {kind}, {values}, {self.samples} samples per cell, trained on contexts of "
                f"{run.context}",
                ("length", "depth", "exact", "substring", "log-probability gain"),
                [(c["length"], c["depth"], s["exact"], s["substring"], s["gain"]) for c, s in own],
            )
            draw_needles(folder / f"needle-{kind}-{values}", run.path.name, run.context, own)


def _lengths(run: TrainedRun, wanted: list[int] | None, tasks: list[NeedleTask]) -> list[int]:
    """Ascending: as set, or by doubling from the training context or, where needles do not fit into that, beyond."""
    for task in tasks:
        if task.answer_tokens > ruler.NEW_TOKENS:
            warn_once(
                f"answers of kind {task.kind} with {task.values} take up to {task.answer_tokens} tokens with this "
                f"tokenizer and RULER generates {ruler.NEW_TOKENS}: no model can give them whole."
            )
    if wanted is not None:
        lengths = sorted(set(wanted))
        for task in tasks:
            task.check_length(lengths[0])
        return lengths
    shortest, first = max(task.shortest for task in tasks), run.context
    while first < shortest:
        first *= 2
    if first > run.context:
        warn_once(
            f"needles, question and {ruler.NEW_TOKENS} new tokens take {shortest} tokens with this tokenizer, and the "
            f"run was trained on {run.context}: lengths begin at {first}."
        )
    return [first, 2 * first, 4 * first]
