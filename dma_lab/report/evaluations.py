"""What evaluate.py found out about the runs: needles, context lengths and benchmarks, backend beside backend.

Read from ``evaluation/SUITE.json`` in each run's directory. Only scores of the weights that a run ended with are shown,
and only cells of equal settings, computed on equal machines, stand side by side.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import dma_lab.evaluation.suites  # noqa: F401 (they register themselves)
from dma_lab.evaluation.checkpoint import open_run
from dma_lab.evaluation.record import weights_digest
from dma_lab.evaluation.suite import Form, suites_reported_as
from dma_lab.report.cache import needles_against_cache
from dma_lab.report.collect import Run
from dma_lab.report.conditions import SHAPED, without
from dma_lab.report.context_figures import at_one_point, point_text
from dma_lab.report.context_table import loss_by_length
from dma_lab.report.document import Block, Figure, Heatmap, Notice, Section, Series, Table
from dma_lab.seals import unsealed

_IDENTITY = ("step", "weights", "hardware", "precision")
_NEEDED: dict[Form, tuple[set[str], set[str]]] = {
    "needles": ({*_IDENTITY, "kind", "values", "length", "depth"}, {"exact", "gain"}),
    "contexts": ({*_IDENTITY, "context", "stride", "tokens"}, {"perplexity"}),
    "tasks": ({*_IDENTITY, "task"}, {"questions"}),
}
"""By form: what a cell and its scores must hold to be shown in it."""


class _Cell(NamedTuple):
    run: Run
    settings: dict[str, Any]
    """Everything that fixes the scores, except the weights."""
    scores: dict[str, Any]


def evaluations(finished: Sequence[Run]) -> Section | None:
    """The section of a cohort's finished runs; None when none of them was evaluated."""
    blocks: list[Block] = []
    suites = {form: suites_reported_as(form) for form in _NEEDED}
    cells: dict[str, list[_Cell]] = {suite: [] for names in suites.values() for suite in names}
    for run in finished:
        last_weights = cache(partial(_last_weights, run))  # a checkpoint may be large: read for the first suite
        for suite, form in ((suite, form) for form, names in suites.items() for suite in names):
            try:
                cells[suite] += _read(run, suite, form, last_weights)
            except Exception as error:  # whatever a damaged file raises: the others are shown all the same
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                blocks.append(Notice(f"evaluation/{suite}.json of {run.name} cannot be read: {reason}."))
    needles, contexts, tasks = ([cell for suite in suites[form] for cell in cells[suite]] for form in _NEEDED)
    for number, (settings, everyone) in enumerate(_groups(needles, ("length", "depth")), 1):
        group = _at_one_point(everyone)
        blocks += _needles(number, settings, group)
        if scatter := needles_against_cache(number, group, _spelled(settings)):
            blocks.append(scatter)
    for number, (settings, everyone) in enumerate(_groups(contexts, ("context",)), 1):
        blocks.append(_contexts(number, settings, _at_one_point(everyone)))
        scored = [(cell.run, cell.settings["context"], cell.scores["perplexity"]) for cell in everyone]
        if table := loss_by_length(scored, _spelled(settings)):
            blocks.append(table)
    if tasks:
        blocks.append(_benchmarks(tasks))
    return Section("Beyond the loss", blocks) if blocks else None


def _read(run: Run, suite: str, form: Form, last_weights: Callable[[], str | None]) -> list[_Cell]:
    """Cells of the weights that the run ended with; none when the suite was not evaluated.

    Raises:
        ValueError: the checkpoint is gone and cells of the last step are of several weights.
    """
    file = run.path / "evaluation" / f"{suite}.json"
    if not file.exists():
        return []
    cells, ended_with = [], set()
    for entry in unsealed(file.read_text(encoding="utf-8"))["cells"]:
        # A mean over tasks is named by its members, whose settings are alike.
        settings, scores = {**entry["cell"].get("mean_of", [{}])[0], **entry["cell"]}, entry["scores"]
        lacking = [
            name for names, part in zip(_NEEDED[form], (settings, scores), strict=True) for name in names - part.keys()
        ]
        if lacking:
            raise ValueError(f"a cell lacks {', '.join(sorted(lacking))}")
        if settings["step"] != run.summary.steps:
            continue
        if settings["weights"] != (last_weights() or settings["weights"]):
            continue
        ended_with.add(settings["weights"])
        if form == "contexts" and settings["stride"] == max(1, settings["context"] // 2):
            settings["stride"] = "half the context"  # what lengths of one evaluation have in common
        unsaid = ("weights", "step", "mean_of")
        cells.append(_Cell(run, {name: settings[name] for name in settings if name not in unsaid}, scores))
    if len(ended_with) > 1:
        raise ValueError("it has scores of several weights, and checkpoints/last.ckpt is not there to tell which")
    return cells


def _last_weights(run: Run) -> str | None:
    """Names the weights in the run's checkpoint; None where that is gone."""
    return weights_digest(open_run(run.path)) if (run.path / "checkpoints" / "last.ckpt").exists() else None


def _groups(cells: Iterable[_Cell], axes: Sequence[str]) -> list[tuple[dict[str, Any], list[_Cell]]]:
    """Cells whose settings differ in ``axes`` alone, with what they have in common."""
    groups: dict[str, tuple[dict[str, Any], list[_Cell]]] = {}
    for cell in cells:
        common = {name: value for name, value in cell.settings.items() if name not in axes}
        groups.setdefault(json.dumps(common, sort_keys=True), (common, []))[1].append(cell)
    return list(groups.values())


def _at_one_point(cells: Sequence[_Cell]) -> list[_Cell]:
    """Those of one run per backend."""
    runs = {run.path for run in at_one_point([cell.run for cell in cells])}
    return [cell for cell in cells if cell.run.path in runs]


def _needles(number: int, settings: dict[str, Any], cells: Sequence[_Cell]) -> list[Heatmap]:
    """How often needles are answered exactly, and what they add to the log-probability of their values."""
    lengths = sorted({cell.settings["length"] for cell in cells})
    depths = sorted({cell.settings["depth"] for cell in cells})
    rows = [(backend, depth) for backend in dict.fromkeys(cell.run.backend for cell in cells) for depth in depths]
    scores = {(cell.run.backend, cell.settings["depth"], cell.settings["length"]): cell.scores for cell in cells}

    def heatmap(score: str, title: str, scale: str) -> Heatmap:
        grid = [[_finite(scores.get((*row, length), {}).get(score)) for length in lengths] for row in rows]
        reach = max([1.0, *(abs(value) for row in grid for value in row if value is not None)])
        return Heatmap(
            f"needle-{number}-{score}",
            f"{title}: {settings['kind']}, {settings['values']}",
            f"{_about(cells)} Settings: {_spelled(settings)}. A row is a backend and the needle's depth in the text; "
            "grey where nothing was evaluated.",
            "length of the text (tokens)",
            "backend, depth",
            list(range(len(lengths) + 1)),
            {column + 0.5: f"{length:,}" for column, length in enumerate(lengths)},
            [f"{backend} {depth:.0%}" for backend, depth in rows],
            grid,
            columns=[f"{length:,} tokens" for length in lengths],
            unit="one training per backend; a cell is a mean over samples",
            scale=scale,
            reach=reach if score == "gain" else None,
        )

    return [
        heatmap("exact", "Needles answered exactly", "share of samples"),
        heatmap("gain", "Log-probability that needles give their values over others", "nats per token"),
    ]


def _contexts(number: int, settings: dict[str, Any], cells: Sequence[_Cell]) -> Figure:
    """Perplexity of the same targets by the length of the context they are predicted from."""
    series = []
    for backend in dict.fromkeys(cell.run.backend for cell in cells):
        own = sorted((cell for cell in cells if cell.run.backend == backend), key=lambda cell: cell.settings["context"])
        x, y = [cell.settings["context"] for cell in own], [cell.scores["perplexity"] for cell in own]
        hover = [f"{cell.run.label}: contexts of {cell.settings['context']:,} tokens" for cell in own]
        series += [Series(backend, "line", x, y), Series(backend, "points", x, y, hover=hover)]
    return Figure(
        f"context-{number}",
        "Perplexity by context length",
        f"{_about(cells)} The same validation targets at every length, each scored once. Settings: "
        f"{_spelled(settings)}.",
        "context (tokens)",
        "perplexity",
        series,
        x_log=True,
        unit="one training per backend; over its validation tokens",
    )


def _benchmarks(cells: Sequence[_Cell]) -> Table:
    """Task by backend, at every point that was evaluated."""
    backends = list(dict.fromkeys(cell.run.backend for cell in cells))
    settings = any(cell.run.setting for cell in cells)
    rows: dict[tuple[tuple[str, ...], Any], dict[str, str]] = {}
    for cell in sorted(cells, key=lambda cell: cell.settings["task"]):
        run = cell.run
        for label, value in cell.scores.items():
            if label in ("questions", "by_question", "chance") or label.endswith("_error"):
                continue
            error = cell.scores.get(f"{label}_error")
            chance = cell.scores.get("chance") if label.startswith("acc") else None
            task = f"{cell.settings['task']}{_varied(cell, cells)}"
            questions = f"{cell.scores['questions']:,}"
            place = (run.rung, *([run.setting] if settings else []), f"{run.summary.tokens:,}", run.summary.seed)
            shown = (task, label, *map(str, place), questions, "" if chance is None else f"{chance:.3f}")
            score = f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"
            # Two models may share a rung's name.
            rows.setdefault((shown, without(run.conditions, SHAPED)), {})[run.backend] = score
    return Table(
        "Benchmarks by lm-eval's names of tasks and scores. ±: standard error over questions; chance: what guessing "
        "scores. An empty cell was not evaluated.",
        (
            *("task", "score", "rung", *(["setting"] if settings else [])),
            *("tokens", "seed", "questions", "chance", *backends),
        ),
        [(*shown, *(scores.get(backend, "") for backend in backends)) for (shown, _), scores in rows.items()],
        frozenset(("task", "score", "rung", "setting")),
        title="Benchmarks",
        unit="one training per row and backend; ± is over questions",
    )


def _varied(cell: _Cell, cells: Sequence[_Cell]) -> str:
    """The settings in which cells of one task differ."""
    peers = [peer.settings for peer in cells if peer.settings["task"] == cell.settings["task"]]
    varied = {name: value for name, value in cell.settings.items() if any(peer.get(name) != value for peer in peers)}
    return f" ({_spelled(varied)})" if varied else ""


def _about(cells: Sequence[_Cell]) -> str:
    contexts = ", ".join(f"{context:,}" for context in sorted({cell.run.summary.context for cell in cells}))
    return f"{point_text(cells[0].run)}, trained on contexts of {contexts} tokens."


def _spelled(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
