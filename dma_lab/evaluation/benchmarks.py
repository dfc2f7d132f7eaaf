"""Benchmarks by lm-eval: its tasks ask, the run's model answers, lm-eval counts; a task is a cell of the record."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from statistics import fmean
from typing import Any

import numpy as np
from lm_eval import evaluator
from lm_eval.api.registry import get_aggregation
from lm_eval.api.task import Task
from numpy.typing import NDArray

from dma_lab.evaluation.checkpoint import TrainedRun
from dma_lab.evaluation.harness import HarnessModel
from dma_lab.evaluation.record import EvaluationRecord
from dma_lab.evaluation.session import Machine, show
from dma_lab.evaluation.suite import Cell, Job, Scores
from dma_lab.model import Transformer

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings speak of its own command line


@dataclass(frozen=True)
class Benchmark:
    """One of lm-eval's tasks, not yet loaded."""

    name: str
    identity: dict[str, Any]
    """What determines its scores besides its name, the model and ``max_length``."""
    max_length: int
    """Tokens that the model is given at most."""
    load: Callable[[], Task]


@dataclass(frozen=True)
class Mean:
    """A group of benchmarks that is reported as their mean."""

    name: str
    members: list[str]
    by_questions: bool
    """Weigh them by their questions, instead of equally."""


@dataclass(frozen=True)
class Benchmarks:
    """Benchmarks as jobs of a suite.

    Args:
        limit: questions per task; all where it is None.
        rope_base: base of the rotary frequencies; as trained where it is None.
    """

    run: TrainedRun
    machine: Machine
    record: EvaluationRecord
    limit: int | None
    rope_base: float | None

    def jobs(self, benchmarks: Sequence[Benchmark], means: Sequence[Mean] = ()) -> list[Job]:
        """One per benchmark, then one per mean.

        Scoring raises UserError where a benchmark cannot be loaded, or not be answered with its ``max_length``.
        """
        pending = [benchmark for benchmark in benchmarks if self.is_pending(benchmark)]
        place = {benchmark.name: f"({number} of {len(pending)})" for number, benchmark in enumerate(pending, start=1)}
        cells = {benchmark.name: self.cell(benchmark) for benchmark in benchmarks}
        jobs = [
            Job([cells[benchmark.name]], benchmark.max_length, partial(self._score, benchmark, place))
            for benchmark in benchmarks
        ]
        for mean in means:
            members = {name: cells[name] for name in mean.members}
            cell = {"task": mean.name, "mean_of": list(members.values())}
            jobs.append(Job([cell], self.run.context, partial(self._mean, mean, members)))
        return jobs

    def cell(self, benchmark: Benchmark) -> Cell:
        """lm-eval's version too: how an answer is read and scored is its own, and changes under equal task versions."""
        same = {
            "limit": self.limit,
            "rope_base": self.rope_base or self.run.rope_base,
            "lm_eval": version("lm_eval"),
        }
        return {"task": benchmark.name, **benchmark.identity, "max_length": benchmark.max_length, **same}

    def is_pending(self, benchmark: Benchmark) -> bool:
        return self.record.scores(self.cell(benchmark)) is None

    def _score(
        self, benchmark: Benchmark, place: dict[str, str], model: Transformer, advance: Callable[[float], None]
    ) -> list[Scores]:
        answering = HarnessModel(
            model,
            self.run.data.load_tokenizer(),
            eot_id=self.run.data.eot_id,
            vocab_size=self.run.data.vocab_size,
            max_length=benchmark.max_length,
            batch_tokens=self.machine.batch_tokens,
        )
        answering.task = f"{benchmark.name} {place[benchmark.name]}"
        answering.loses = self.run.data.tokenizer_loses
        scores, by_question = score_task(answering, benchmark.load(), self.limit)
        file = f"{self.record.suite}-{self.record.name(self.cell(benchmark))}.npz"
        np.savez(self.record.folder / file, **by_question)  # type: ignore[arg-type]
        return [{**scores, "by_question": file}]

    def _mean(
        self, mean: Mean, members: dict[str, Cell], model: Transformer, advance: Callable[[float], None]
    ) -> list[Scores]:
        return [mean_scores(mean, {name: self.record.scores(cell) or {} for name, cell in members.items()})]


def score_task(
    model: HarnessModel, task: Task, limit: int | None = None
) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """What lm-eval makes of the model's answers to the first ``limit`` questions of ``task``.

    Returns:
        The scores by their names in lm-eval; ``_error`` to a name is the standard error of a score that is a mean over
        questions; ``questions`` their number; ``chance``, of multiple choice, what guessing scores. And the scores
        that are means by question, float64 (questions,), in the task's order.
    """
    name = task.task_name
    results: Any = evaluator.evaluate(
        model, {"tasks": {name: task}}, limit=limit, bootstrap_iters=0, log_samples=True, verbosity="ERROR"
    )
    samples = results["samples"][name]
    filters = sorted({sample["filter"] for sample in samples})
    scores: dict[str, Any] = {"questions": len(samples) // len(filters)}
    by_question = {}
    for metric, aggregation in task.aggregation().items():
        for kept in filters:
            # A task reads its answers in one way, mostly; where in several, lm-eval names each.
            label = metric if len(filters) == 1 else f"{metric},{kept}"
            value = float(results["results"][name].get(f"{metric},{kept}", math.nan))
            if math.isnan(value) or value < 0:  # RULER's -1: a length that was not asked for
                continue
            scores[label] = value
            if aggregation is get_aggregation("mean"):
                column = np.array([float(sample[metric]) for sample in samples if sample["filter"] == kept])
                by_question[label] = column
                if len(column) > 1:
                    scores[f"{label}_error"] = float(column.std(ddof=1) / math.sqrt(len(column)))
    if task.OUTPUT_TYPE == "multiple_choice":
        scores["chance"] = fmean(1 / len(sample["arguments"]) for sample in samples)
    return scores, by_question


def mean_scores(mean: Mean, scores_of: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The mean of every score that all members have, with its standard error where all have one."""
    members = [scores_of[name] for name in mean.members]
    questions = [member["questions"] for member in members]
    weights = np.array(questions if mean.by_questions else [1] * len(members), dtype=np.float64)
    weights /= weights.sum()
    scores: dict[str, Any] = {"questions": sum(questions)}
    for label in members[0]:
        values = [member.get(label) for member in members]
        if label in ("questions", "by_question") or None in values:
            continue
        column = np.array(values, dtype=np.float64)
        # Members share no question: the variances of their means add.
        error = label.endswith("_error")
        scores[label] = float(np.sqrt((weights**2 * column**2).sum()) if error else (weights * column).sum())
    return scores


def show_benchmarks(run: TrainedRun, found: Sequence[tuple[Cell, Scores]], limit: int | None) -> None:
    """Print every score by task; of the first ``limit`` questions of each, or of all."""
    rows: list[tuple[Any, ...]] = []
    for cell, scores in found:
        for label, value in scores.items():
            if label in ("questions", "by_question", "chance") or label.endswith("_error"):
                continue
            error = scores.get(f"{label}_error", "")
            chance = scores.get("chance", "") if label.startswith("acc") else ""
            rows.append((cell["task"], label, value, error, chance, scores["questions"]))
    first = "" if limit is None else f", the first {limit:,} questions of each task"
    show(f"{run.path.name}{first}", ("task", "score", "value", "±", "chance", "questions"), rows)
