"""From a sweep of learning rates to a file of each backend's best (``report.py tune=FILE``), and figures beside it."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from dma_lab.figures.palette import colours_of
from dma_lab.files import write_whole
from dma_lab.messages import UserError
from dma_lab.model.ladder import reference_parameters
from dma_lab.report.cohorts import name_runs
from dma_lab.report.collect import Run, read_runs
from dma_lab.report.draw import draw
from dma_lab.report.tuning import CELL_COLUMNS, Tuning, attention_of, seed_noise, swept_runs, tune
from dma_lab.report.tuning_figure import tuning_figure
from dma_lab.scaling.tuning import BestRate

_SHAPE = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff")
_HEAD = """\
# Learning rates tuned for each backend, as multiples of the recipe's; written by report.py tune=FILE. Take it with
# tuned=FILE. An interval is of 95 %, by the noise of {freedom} further seeds pooled.
"""


def write_tuned(roots: Sequence[Path], file: Path) -> None:
    """Write the best rate of every backend under ``roots``, by the rungs it was swept at, to ``file``, a figure of each
    rung beside it, and print a table of them.

    Raises:
        UserError: the runs are no such sweep.

    Where the rate was not swept at a rung, that is said and left out: the runs may be of a whole study, from which the
    recipe's own rate comes, beside a folder with the rates around it.
    """
    read, unreadable = read_runs(*roots)
    shown = ",".join(map(str, roots))
    runs = name_runs([run for run in read if run.finished or run.summary["status"] == "diverged"])
    taken = {run.path for run in runs}
    warnings = [f"{run.name} is left out: {run.status}" for run in read if run.path not in taken]
    warnings += [f"{run.name} is left out: {run.reason}" for run in unreadable]
    cells: dict[str, dict[int, list[Run]]] = {}
    for run in runs:
        cells.setdefault(yaml.safe_dump(attention_of(run)), {}).setdefault(_parameters(run), []).append(run)
    finished = [run for run in runs if run.finished]
    if not finished:
        raise UserError(f"runs={shown} holds no finished run; train the sweep first.")
    if without_recipe := [run.name for run in finished if "recipe_learning_rate" not in run.summary]:
        raise UserError(f"{without_recipe[0]} does not say what the recipe's rate was; train it again.")
    optimizers = {str(run.config.optimizer.name) for run in runs}
    if len(optimizers) > 1:
        raise UserError(f"runs={shown} holds runs of {' and '.join(sorted(optimizers))}; tune one optimizer at a time.")
    noise = seed_noise(finished)
    found: dict[str, dict[int, Tuning]] = {}
    for written, by_size in sorted(cells.items()):
        for size, own in sorted(by_size.items()):
            swept = swept_runs(own)
            if isinstance(swept, str):
                warnings.append(swept)
            else:
                found.setdefault(written, {})[size] = tune(swept, noise)
    if not found:
        raise UserError(f"runs={shown} holds no sweep of the learning rate: {warnings[-1]}.")
    file.parent.mkdir(parents=True, exist_ok=True)
    head = _HEAD.format(freedom=0 if noise is None else noise.freedom)
    backends = [_backend(*own) for own in found.items()]
    content = {"optimizer": optimizers.pop(), "backends": backends}
    write_whole(file, head + yaml.safe_dump(content, sort_keys=False))
    spent = {own["trainings"] for own in backends}
    if len(spent) > 1:
        warnings.append(f"attentions were given {min(spent)} to {max(spent)} trainings, so not all had the same budget")
    every = [tuning for by_size in found.values() for tuning in by_size.values()]
    colours = colours_of(tuning.runs[0].backend for tuning in every)
    for size in sorted({size for by_size in found.values() for size in by_size}):
        of_size = [by_size[size] for by_size in found.values() if size in by_size]
        draw(tuning_figure(f"{file.stem}-{of_size[0].runs[0].rung}", of_size), file.parent, colours)
    table = Table(title="tuned learning rates", title_justify="left")
    for column in ("attention", "rung", *CELL_COLUMNS):
        table.add_column(column)
    for tuning in every:
        run = tuning.runs[0]
        table.add_row(run.backend, run.rung, *tuning.cells)
        warnings += [f"{run.backend} at {run.rung}: {note}" for note in tuning.notes]
    Console(width=None if sys.stdout.isatty() else 240).print(table)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _backend(written: str, by_size: dict[int, Tuning]) -> dict[str, Any]:
    """What the file says of one attention."""
    points, found, notes = [], [], []
    for size, own in by_size.items():
        assert own.recipe is not None
        points.append({"parameters": float(size), "multiplier": float(f"{own.best.rate / own.recipe:.4g}")})
        found.append((own.best, own.recipe))
        notes += [f"{own.runs[0].rung}: {note}" for note in own.notes]
    if len(points) > 1 and _agree(found):
        # The rungs do not differ beyond what the noise leaves open: one multiplier for all sizes.
        mean = math.exp(sum(math.log(point["multiplier"]) for point in points) / len(points))
        points = [{"parameters": points[-1]["parameters"], "multiplier": float(f"{mean:.4g}")}]
    trainings = sum(len(own.runs) for own in by_size.values())
    return {"attention": yaml.safe_load(written), "points": points, "trainings": trainings, "notes": notes}


def _agree(found: list[tuple[BestRate, float]]) -> bool:
    """Whether intervals of the multiplier meet; without one nothing tells rungs apart, unless one lies at an edge."""
    if any(best.edge for best, _ in found):
        return False
    known = [(best.interval[0] / recipe, best.interval[1] / recipe) for best, recipe in found if best.interval]
    return not known or max(low for low, _ in known) <= min(high for _, high in known)


def _parameters(run: Run) -> int:
    return reference_parameters(*(int(run.config.model[name]) for name in _SHAPE))
