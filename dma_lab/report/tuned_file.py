"""From a sweep of learning rates to a file of each backend's best (``report.py tune=FILE``), and figures beside it."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from dma_lab.figures.palette import colours_of
from dma_lab.files import write_whole
from dma_lab.report.collect import Run
from dma_lab.report.draw import draw
from dma_lab.report.tuned_settings import chosen_settings, overrides_of
from dma_lab.report.tuning import CELL_COLUMNS, Tuning
from dma_lab.report.tuning_figure import tuning_figures
from dma_lab.report.tuning_runs import mha_parameters, read_sweeps
from dma_lab.scaling.tuning import BestRate, best_multiplier
from dma_lab.train.recipe import recipe_learning_rate
from dma_lab.train.tuned import TunedChoice

_HEAD = """\
# Learning rates tuned for each backend, as multiples of the recipe's, and of settings that tuning may choose those that
# were shown to be better than the default (choice); written by report.py tune=FILE. Take it with tuned=FILE. An
# interval is of 95 %, by the noise over seeds. Tuned at:
{places}"""


def write_tuned(roots: Sequence[Path], file: Path) -> None:
    """Write the best rate of every backend under ``roots``, by the rungs it was swept at, and the settings chosen for
    it to ``file``, a figure of each rung beside it, and print a table of them.

    Raises:
        UserError: the runs are no such sweep.
    """
    sweeps = read_sweeps(roots)
    every = [tuning for by_size in sweeps.tuned.values() for tuning in by_size.values()]
    choices = chosen_settings(sweeps.tuned.values())
    backends = [_backend(written, by_size, choices.get(written)) for written, by_size in sweeps.tuned.items()]
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"optimizer": sweeps.optimizer, "backends": backends}
    write_whole(file, _HEAD.format(places=_places(sweeps.sound)) + yaml.safe_dump(content, sort_keys=False))
    warnings = [*sweeps.warnings, *_draw_curves(every, file), *_other_recipes(sweeps.sound)]
    table = Table(title="tuned learning rates", title_justify="left")
    for column in ("attention", "rung", *CELL_COLUMNS):
        table.add_column(column)
    for tuning in every:
        run = tuning.runs[0]
        table.add_row(run.backend, run.rung, *tuning.cells)
    Console(width=None if sys.stdout.isatty() else 240).print(table)
    spent: dict[str, int] = {}
    for (written, by_size), said_of in zip(sweeps.tuned.items(), backends, strict=True):
        name = next(iter(by_size.values())).runs[0].backend
        spent[name] = spent.get(name, 0) + said_of["trainings"]
        warnings += [f"{name}: {note}" for note in said_of["notes"]]
        if choice := choices.get(written):
            print(f"{name}: {choice.said} ({choice.trainings} trainings)")
    if len(set(spent.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in spent.items())
        warnings.append(f"not all had the same budget; trainings: {listed}")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _draw_curves(every: Sequence[Tuning], file: Path) -> list[str]:
    """A figure of each rung, of one number of tokens; what to say where a rung has several of these."""
    by_length: dict[tuple[int, str], dict[int, list[Tuning]]] = {}
    for tuning in every:
        run = tuning.finished[0]
        lengths = by_length.setdefault((mha_parameters(run), run.rung), {})
        lengths.setdefault(run.summary.tokens, []).append(tuning)
    colours, said = colours_of(tuning.runs[0].backend for tuning in every), []
    for (_, rung), lengths in sorted(by_length.items()):
        for tokens, alike in sorted(lengths.items()):
            several = f"-{tokens}" if len(lengths) > 1 else ""
            for figure in tuning_figures(f"{file.stem}-{rung}{several}", alike):
                draw(figure, file.parent, colours)
        if len(lengths) > 1:
            listed = " and ".join(f"{tokens:,}" for tokens in sorted(lengths))
            said.append(f"at {rung} attentions were swept over {listed} tokens: their losses do not compare")
    return said


def _places(runs: Sequence[Run]) -> str:
    """Comments, of each rung: what a rate was measured under that another study may have otherwise."""
    lines = {
        f"#   {run.rung}: {run.summary.tokens:,} tokens in steps of {run.config.trainer.tokens_per_step:,}, context "
        f"{run.summary.context:,}, data {run.summary.data_fingerprint[:8]}\n": None
        for run in sorted(runs, key=mha_parameters)
        if run.finished
    }
    return "".join(lines)


def _backend(written: str, by_size: dict[int, Tuning], choice: TunedChoice | None) -> dict[str, Any]:
    """What the file says of one attention."""
    points, found, notes = [], [], []
    for size, own in by_size.items():
        recipe = _recipe(own.finished[0])
        interval = None if own.best.interval is None else [end / recipe for end in own.best.interval]
        points.append(_point(size, own.best.rate / recipe, interval))
        found.append((own.best, recipe))
        notes += [f"at {own.runs[0].rung} {note}" for note in own.notes]
    if len(points) == 1:
        notes.append(f"tuned at {own.runs[0].rung} alone: other sizes take the same multiple of the recipe's rate")
    elif _agree(found) and (together := best_multiplier(found)):
        # The rungs do not differ beyond what the noise leaves open: one multiplier for all sizes.
        points = [_point(size, *together)]
    trainings = sum(own.trainings for own in by_size.values())
    run = own.runs[0]
    return {
        "overrides": overrides_of(run),
        "attention": yaml.safe_load(written),
        "points": points,
        "trainings": trainings,
        "notes": notes,
        "choice": None if choice is None else asdict(choice),
    }


def _point(size: int, multiplier: float, interval: Sequence[float] | None) -> dict[str, Any]:
    ends = None if interval is None else [float(f"{end:.4g}") for end in interval]
    return {"parameters": float(size), "multiplier": float(f"{multiplier:.4g}"), "interval": ends}


def _agree(found: list[tuple[BestRate, float]]) -> bool:
    """Whether intervals of the multiplier meet; without one nothing tells rungs apart, unless one lies at an edge."""
    if any(best.edge for best, _ in found):
        return False
    known = [(best.interval[0] / recipe, best.interval[1] / recipe) for best, recipe in found if best.interval]
    return not known or max(low for low, _ in known) <= min(high for _, high in known)


def _recipe(run: Run) -> float:
    """What ``tuned=FILE`` will multiply: the recipe's rate as it is now."""
    trainer = run.config.trainer
    optimizer, tokens = str(run.config.optimizer.name), run.summary.tokens
    return recipe_learning_rate(optimizer, mha_parameters(run), tokens, trainer.tokens_per_step, trainer.context)


def _other_recipes(runs: Sequence[Run]) -> list[str]:
    """What to say of rungs whose recipe was another when they were trained."""
    found: dict[str, set[tuple[float, float]]] = {}
    for run in runs:
        then, now = run.summary.recipe_learning_rate, _recipe(run)
        if then is not None and then != now:
            found.setdefault(run.rung, set()).add((then, now))
    return [
        f"at {rung} the recipe's rate was {then:g} when runs were trained; what is written are multiples of {now:g}, "
        "which it is now"
        for rung, pairs in found.items()
        for then, now in sorted(pairs)
    ]
