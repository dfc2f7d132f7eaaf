"""From a sweep of learning rates to a file of each backend's best (``report.py tune=FILE``), and figures beside it."""

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
from dma_lab.report.conditions import shared_by_a_study
from dma_lab.report.draw import draw
from dma_lab.report.tuned_settings import overrides_of, settings_of_least_loss
from dma_lab.report.tuning import CELL_COLUMNS, Tuning, attention_of, seed_noise, sound_runs, swept_runs, tune
from dma_lab.report.tuning_figure import tuning_figure
from dma_lab.scaling.tuning import BestRate, best_multiplier

_SHAPE = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff")
_HEAD = """\
# Learning rates tuned for each backend, as multiples of the recipe's; written by report.py tune=FILE. Take it with
# tuned=FILE. An interval is of 95 %, by the noise over seeds. Tuned at:
{places}"""


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
    swept: dict[str, dict[int, list[Run]]] = {}
    for written, by_size in sorted(cells.items()):
        for size, own in sorted(by_size.items()):
            found = swept_runs(own)
            if isinstance(found, str):
                warnings.append(found)
            else:
                swept.setdefault(written, {})[size] = found
    if not swept:
        raise UserError(f"runs={shown} holds no sweep of the learning rate: {warnings[-1]}.")
    among = [run for by_size in swept.values() for own in by_size.values() for run in sound_runs(own)]
    _require_one_study(among, shown)
    tuned = {
        written: {size: tune(own, seed_noise(own, among)) for size, own in by_size.items()}
        for written, by_size in swept.items()
    }
    every = [tuning for by_size in tuned.values() for tuning in by_size.values()]
    backends = [_backend(*own) for own in tuned.items()]
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"optimizer": optimizers.pop(), "backends": backends}
    write_whole(file, _HEAD.format(places=_places(among)) + yaml.safe_dump(content, sort_keys=False))
    warnings += _draw_curves(every, file)
    table = Table(title="tuned learning rates", title_justify="left")
    for column in ("attention", "rung", *CELL_COLUMNS):
        table.add_column(column)
    for tuning in every:
        run = tuning.runs[0]
        table.add_row(run.backend, run.rung, *tuning.cells)
    Console(width=None if sys.stdout.isatty() else 240).print(table)
    for said in settings_of_least_loss(every):
        print(said)
    spent: dict[str, int] = {}
    for by_rung, said_of in zip(tuned.values(), backends, strict=True):
        name = next(iter(by_rung.values())).runs[0].backend
        spent[name] = spent.get(name, 0) + said_of["trainings"]
        warnings += [f"{name}: {note}" for note in said_of["notes"]]
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
        lengths = by_length.setdefault((_parameters(run), run.rung), {})
        lengths.setdefault(run.summary["tokens"], []).append(tuning)
    colours, said = colours_of(tuning.runs[0].backend for tuning in every), []
    for (_, rung), lengths in sorted(by_length.items()):
        for tokens, alike in sorted(lengths.items()):
            several = f"-{tokens}" if len(lengths) > 1 else ""
            draw(tuning_figure(f"{file.stem}-{rung}{several}", alike), file.parent, colours)
        if len(lengths) > 1:
            listed = " and ".join(f"{tokens:,}" for tokens in sorted(lengths))
            said.append(f"at {rung} attentions were swept over {listed} tokens: their losses do not compare")
    return said


def _require_one_study(runs: Sequence[Run], shown: str) -> None:
    first = runs[0]
    for run in runs:
        if apart := {name for name, _ in shared_by_a_study(first.conditions) ^ shared_by_a_study(run.conditions)}:
            raise UserError(
                f"runs={shown} holds sweeps of more than one study: {first.name} and {run.name} differ in "
                f"{', '.join(sorted(apart))}; tune one at a time, each to a file of its own."
            )


def _places(runs: Sequence[Run]) -> str:
    """Comments, of each rung: what a rate was measured under that another study may have otherwise."""
    lines = {
        f"#   {run.rung}: {run.summary['tokens']:,} tokens in steps of {run.config.trainer.tokens_per_step:,}, context "
        f"{run.summary['context']:,}, data {run.summary['data_fingerprint'][:8]}\n": None
        for run in sorted(runs, key=_parameters)
        if run.finished
    }
    return "".join(lines)


def _backend(written: str, by_size: dict[int, Tuning]) -> dict[str, Any]:
    """What the file says of one attention."""
    points, found, notes = [], [], []
    for size, own in by_size.items():
        assert own.recipe is not None
        interval = None if own.best.interval is None else [end / own.recipe for end in own.best.interval]
        points.append(_point(size, own.best.rate / own.recipe, interval))
        found.append((own.best, own.recipe))
        notes += [f"at {own.runs[0].rung} {note}" for note in own.notes]
    if len(points) == 1:
        notes.append(f"tuned at {own.runs[0].rung} alone: other sizes take the same multiple of the recipe's rate")
    elif _agree(found) and (together := best_multiplier(found)):
        # The rungs do not differ beyond what the noise leaves open: one multiplier for all sizes.
        points = [_point(size, *together)]
    trainings = sum(len(own.runs) for own in by_size.values())
    run = own.runs[0]
    return {
        "overrides": overrides_of(run),
        "attention": yaml.safe_load(written),
        "points": points,
        "trainings": trainings,
        "notes": notes,
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


def _parameters(run: Run) -> int:
    return reference_parameters(*(int(run.config.model[name]) for name in _SHAPE))
