"""Benchmarks by lm-eval: its tasks ask, the run's model answers, lm-eval counts; a task is a cell of the record."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from dma_lab.evaluation.session import Machine, open_model, show

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings speak of its own command line


@dataclass(frozen=True)
class Benchmark:
    """One of lm-eval's tasks, not yet loaded."""

    name: str
    identity: dict[str, Any]
    """What defines its scores besides its name, the model and ``max_length``."""
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


def run_benchmarks(
    run: TrainedRun,
    benchmarks: Sequence[Benchmark],
    means: Sequence[Mean],
    *,
    limit: int | None,
    rope_base: float | None,
    machine: Machine,
    record: EvaluationRecord,
    check: Callable[[Sequence[Benchmark]], None] = lambda pending: None,
) -> None:
    """Evaluate what the record does not have yet, then show everything.

    Args:
        limit: questions a task; all where it is None.
        rope_base: base of the rotary frequencies; as trained where it is None.
        check: told what is to be evaluated before anything is, may refuse it.

    Raises:
        UserError: a benchmark cannot be loaded, or not be answered with its ``max_length``.
    """
    same = {"limit": limit, "rope_base": rope_base or run.rope_base}
    cells = {
        benchmark.name: {"task": benchmark.name, **benchmark.identity, "max_length": benchmark.max_length, **same}
        for benchmark in benchmarks
    }
    pending = [benchmark for benchmark in benchmarks if record.scores(cells[benchmark.name]) is None]
    if pending:
        check(pending)
        model = HarnessModel(
            open_model(run, max(benchmark.max_length for benchmark in pending), rope_base, machine),
            run.data.load_tokenizer(),
            separator_id=run.data.separator_id,
            vocab_size=run.data.vocab_size,
            max_length=run.context,
            batch_tokens=machine.batch_tokens,
        )
    for number, benchmark in enumerate(pending, start=1):
        model.max_length = benchmark.max_length
        model.task = f"{benchmark.name} ({number} of {len(pending)})"
        scores, by_question = score_task(model, benchmark.load(), limit)
        file = f"{record.suite}-{record.name(cells[benchmark.name])}.npz"
        np.savez(record.beside(file), **by_question)  # type: ignore[arg-type]
        record.add(cells[benchmark.name], {**scores, "by_question": file})
    scores_of = {name: record.scores(cell) or {} for name, cell in cells.items()}
    for mean in means:
        scores_of[mean.name] = mean_scores(mean, scores_of)
        cells[mean.name] = {"task": mean.name, "mean_of": [cells[name] for name in mean.members]}
        if record.scores(cells[mean.name]) is None:
            record.add(cells[mean.name], scores_of[mean.name])
    _show(run, scores_of, limit)


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


def _show(run: TrainedRun, scores_of: dict[str, dict[str, Any]], limit: int | None) -> None:
    rows: list[tuple[Any, ...]] = []
    for name, scores in scores_of.items():
        for label, value in scores.items():
            if label in ("questions", "by_question", "chance") or label.endswith("_error"):
                continue
            error = scores.get(f"{label}_error", "")
            chance = scores.get("chance", "") if label.startswith("acc") else ""
            rows.append((name, label, value, error, chance, scores["questions"]))
    first = "" if limit is None else f", the first {limit:,} questions of each task"
    show(f"{run.path.name}{first}", ("task", "score", "value", "±", "chance", "questions"), rows)
