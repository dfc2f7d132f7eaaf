"""From a sweep of learning rates to a file of the best for each backend (``report.py tune=FILE``)."""

import math
import sys
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from dma_lab.files import write_whole
from dma_lab.messages import UserError
from dma_lab.model.ladder import reference_parameters
from dma_lab.report.collect import Run, read_runs
from dma_lab.report.conditions import without
from dma_lab.scaling.tuning import LEAST_RATES, BestRate, SeedNoise, best_rate, pool_noise

_SHAPE = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff")
_SEARCHED = frozenset({"optimizer.learning_rate", "seed"})
_HEAD = """\
# Learning rates tuned for each backend, as multiples of the recipe's; written by report.py tune=FILE. Take it with
# tuned=FILE. An interval is of 95 %, by the noise of {freedom} further seeds pooled.
"""


def write_tuned(root: Path, file: Path) -> None:
    """Write the best rate of every backend under ``root``, by the rungs it was swept at, and print a table of it.

    Raises:
        UserError: the runs are no such sweep.
    """
    read, unreadable = read_runs(root)
    runs = [run for run in read if run.finished or run.summary["status"] == "diverged"]
    warnings = [f"{run.name} is left out: {run.status}" for run in read if run not in runs]
    warnings += [f"{run.name} is left out: {run.reason}" for run in unreadable]
    cells: dict[str, dict[int, list[Run]]] = {}
    for run in runs:
        cells.setdefault(yaml.safe_dump(_attention(run)), {}).setdefault(_parameters(run), []).append(run)
    finished = [run for run in runs if run.finished]
    if not finished:
        raise UserError(f"runs={root} holds no finished run; train the sweep first.")
    if without_recipe := [run.name for run in finished if "recipe_learning_rate" not in run.summary]:
        raise UserError(f"{without_recipe[0]} does not say what the recipe's rate was; train it again.")
    optimizers = {str(run.config.optimizer.name) for run in runs}
    if len(optimizers) > 1:
        raise UserError(f"runs={root} holds runs of {' and '.join(sorted(optimizers))}; tune one optimizer at a time.")
    alike: dict[Any, list[float]] = {}
    for run in finished:
        key = yaml.safe_dump(_attention(run)), without(run.conditions, frozenset({"seed"}))
        alike.setdefault(key, []).append(run.summary["val_loss"])
    noise = pool_noise(list(alike.values()))
    table = Table(title="tuned learning rates", title_justify="left")
    for column in ("attention", "rung", "rates", "best rate [95 %]", "multiple of the recipe's", "note"):
        table.add_column(column)
    backends = []
    for written, by_size in sorted(cells.items()):
        points, notes, found = [], [], []
        for size, own in sorted(by_size.items()):
            best, own_notes = _best(own, noise)
            label = f"{own[0].attention} at {own[0].rung}"
            notes += [f"{own[0].rung}: {note}" for note in own_notes]
            warnings += [f"{label}: {note}" for note in own_notes]
            multiplier = best.rate / own[0].summary["recipe_learning_rate"]
            points.append({"parameters": float(size), "multiplier": float(f"{multiplier:.4g}")})
            found.append((best, own[0].summary["recipe_learning_rate"]))
            rates = len({run.config.optimizer.learning_rate for run in own})
            cell = f"{best.rate:.3g} {_interval(best)}"
            table.add_row(own[0].attention, own[0].rung, f"{rates}", cell, f"{multiplier:.3g}", "; ".join(own_notes))
        if len(points) > 1 and _agree(found):
            # The rungs do not differ beyond what the noise leaves open: one multiplier for all sizes.
            mean = math.exp(sum(math.log(point["multiplier"]) for point in points) / len(points))
            points = [{"parameters": points[-1]["parameters"], "multiplier": float(f"{mean:.4g}")}]
        backends.append({"attention": yaml.safe_load(written), "points": points, "notes": notes})
    content = {"optimizer": optimizers.pop(), "backends": backends}
    file.parent.mkdir(parents=True, exist_ok=True)
    head = _HEAD.format(freedom=0 if noise is None else noise.freedom)
    write_whole(file, head + yaml.safe_dump(content, sort_keys=False))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _best(runs: list[Run], noise: SeedNoise | None) -> tuple[BestRate, list[str]]:
    """The best rate of one backend's runs at one rung, and what must be said of it."""
    finished = [run for run in runs if run.finished]
    conditions = {without(run.conditions, _SEARCHED) for run in finished}
    if len(conditions) > 1:
        raise UserError(
            f"{runs[0].attention} at {runs[0].rung} has runs that differ in more than learning rate and seed; give "
            "runs= the folder of one sweep."
        )
    rates = [float(run.config.optimizer.learning_rate) for run in finished]
    if len(set(rates)) < LEAST_RATES:
        raise UserError(
            f"{runs[0].attention} at {runs[0].rung} has finished runs at {len(set(rates))} learning rates; a curve "
            f"takes {LEAST_RATES} or more."
        )
    best = best_rate(rates, [float(run.summary["val_loss"]) for run in finished], noise)
    notes = []
    if best.edge in ("lowest", "highest"):
        notes.append(f"the best is the {best.edge} rate tried, so the optimum may lie beyond")
    elif best.edge:
        notes.append("losses do not rise to both sides of the best rate tried")
    elif best.interval is None:
        notes.append("the noise over seeds leaves the optimum open")
    if diverged := sorted({float(run.config.optimizer.learning_rate) for run in runs if not run.finished}):
        notes.append(f"diverged at {', '.join(f'{rate:g}' for rate in diverged)}")
    return best, notes


def _agree(found: list[tuple[BestRate, float]]) -> bool:
    """Whether intervals of the multiplier meet; without one nothing tells rungs apart, unless one lies at an edge."""
    if any(best.edge for best, _ in found):
        return False
    known = [(best.interval[0] / recipe, best.interval[1] / recipe) for best, recipe in found if best.interval]
    return not known or max(low for low, _ in known) <= min(high for _, high in known)


def _interval(best: BestRate) -> str:
    return "[-]" if best.interval is None else f"[{best.interval[0]:.3g}, {best.interval[1]:.3g}]"


def _attention(run: Run) -> dict[str, Any]:
    options: Any = OmegaConf.to_container(run.config.attention)
    return {str(name): value for name, value in options.items()}


def _parameters(run: Run) -> int:
    return reference_parameters(*(int(run.config.model[name]) for name in _SHAPE))
