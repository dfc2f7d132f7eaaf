"""``suite=needle``: from settings to cells by kind, length and depth, a table and a figure of each kind."""

from pathlib import Path
from typing import Any

from dma_lab.data.finding import user_path
from dma_lab.evaluation import ruler
from dma_lab.evaluation.checkpoint import TrainedRun
from dma_lab.evaluation.haystack import Haystack
from dma_lab.evaluation.needle import NeedleTask
from dma_lab.evaluation.needle_scores import score_samples
from dma_lab.evaluation.record import EvaluationRecord
from dma_lab.evaluation.session import Machine, finished, open_model, progress_of, show
from dma_lab.evaluation.settings import NeedleSettings
from dma_lab.messages import announce_once


def look_for_needles(run: TrainedRun, settings: NeedleSettings, machine: Machine, record: EvaluationRecord) -> None:
    """Score every kind, length and depth that the record does not have yet, then show and draw everything."""
    data = run.data
    tokenizer = data.load_tokenizer()
    if settings.haystack is None:
        haystack = Haystack.of_validation(data)
    else:
        haystack = Haystack.of_file(user_path(settings.haystack, "suite.haystack"), tokenizer)
    options: dict[str, Any] = {"needles": settings.needles, "samples": settings.samples, "seed": settings.seed}
    tasks = [
        NeedleTask(kind, values, haystack=haystack, tokenizer=tokenizer, **options)
        for kind in dict.fromkeys(settings.kinds)
        for values in dict.fromkeys(settings.values)
    ]
    lengths = _lengths(run, settings, tasks)
    same = {**options, "haystack": haystack.digest, "rope_base": settings.rope_base or run.rope_base}
    cells = {
        task: [
            {"kind": task.kind, "values": task.values, "length": length, "depth": depth, **same}
            for length in lengths
            for depth in sorted(set(settings.depths))
        ]
        for task in tasks
    }
    pending = [(task, cell) for task in tasks for cell in cells[task] if record.scores(cell) is None]
    model = open_model(run, lengths[-1], settings.rope_base, machine) if pending else None
    with progress_of("looking for needles", sum(cell["length"] for _, cell in pending)) as advance:
        done = 0
        for task, cell in pending:
            assert model is not None
            length: int = cell["length"]
            scores = score_samples(
                model,
                [task.sample(length, cell["depth"], index) for index in range(settings.samples)],
                tokenizer,
                vocab_size=data.vocab_size,
                separator_id=data.separator_id,
                batch_tokens=machine.batch_tokens,
                on_samples=lambda count, done=done, length=length: advance(  # type: ignore[misc]
                    done + length * count / settings.samples
                ),
            )
            record.add(cell, scores)
            done += length
    for task in tasks:
        found = finished(cells[task], record)
        show(
            f"{run.path.name}: {task.kind}, {task.values}, {settings.samples} samples a cell, trained on contexts of "
            f"{run.context}",
            ("length", "depth", "exact", "substring", "log-probability gain"),
            [(c["length"], c["depth"], s["exact"], s["substring"], s["gain"]) for c, s in found],
        )
        _draw(record.beside(f"needle-{task.kind}-{task.values}"), run, found)


def _lengths(run: TrainedRun, settings: NeedleSettings, tasks: list[NeedleTask]) -> list[int]:
    """Ascending: as set, or by doubling from the training context or, where needles do not fit into that, beyond."""
    for task in tasks:
        if task.answer_tokens > ruler.NEW_TOKENS:
            announce_once(
                f"answers of kind {task.kind} with {task.values} take up to {task.answer_tokens} tokens with this "
                f"tokenizer and RULER generates {ruler.NEW_TOKENS}: no model can give them whole."
            )
    if settings.lengths is not None:
        lengths = sorted(set(settings.lengths))
        for task in tasks:
            task.check_length(lengths[0])
        return lengths
    shortest, first = max(task.shortest for task in tasks), run.context
    while first < shortest:
        first *= 2
    if first > run.context:
        announce_once(
            f"needles, question and {ruler.NEW_TOKENS} new tokens take {shortest} tokens with this tokenizer, and the "
            f"run was trained on {run.context}: lengths begin at {first}."
        )
    return [first, 2 * first, 4 * first]


def _draw(path: Path, run: TrainedRun, found: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    try:
        from dma_lab.evaluation.needle_figure import draw_needles
    except ModuleNotFoundError:
        announce_once("no figure without matplotlib: pip install -e '.[report]' and give the same command again.")
        return
    draw_needles(path, run.path.name, run.context, found)
