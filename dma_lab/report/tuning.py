"""Sweeps of the learning rate: the best rate of an attention at a rung, and how well it is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from omegaconf import OmegaConf

from dma_lab.messages import UserError
from dma_lab.report.collect import Run
from dma_lab.report.conditions import without
from dma_lab.scaling.tuning import LEAST_RATES, BestRate, SeedNoise, best_rate, pool_noise

SEARCHED = frozenset({"optimizer.learning_rate", "seed"})


@dataclass(frozen=True)
class Tuning:
    """The rates that one attention was trained at on one rung, and the best of them."""

    runs: list[Run]
    best: BestRate
    notes: list[str]
    """What must be said of it."""

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.finished]

    @property
    def rates(self) -> list[float]:
        """Of the finished runs."""
        return [float(run.config.optimizer.learning_rate) for run in self.finished]

    @property
    def losses(self) -> list[float]:
        return [float(run.summary["val_loss"]) for run in self.finished]

    @property
    def diverged(self) -> list[float]:
        """Rates at which a run did."""
        return sorted({float(run.config.optimizer.learning_rate) for run in self.runs if not run.finished})

    @property
    def recipe(self) -> float | None:
        """The recipe's rate."""
        value = self.finished[0].summary.get("recipe_learning_rate")
        return None if value is None else float(value)

    @property
    def cells(self) -> tuple[str, ...]:
        """Of a table: rates, seeds, the best and what it is as a multiple of the recipe's, notes."""
        multiple = "-" if self.recipe is None else f"{self.best.rate / self.recipe:.3g}"
        seeds = len({run.summary["seed"] for run in self.finished})
        best = f"{self.best.rate:.3g} {_interval(self.best)}"
        return f"{len(set(self.rates))}", f"{seeds}", best, multiple, "; ".join(self.notes)


CELL_COLUMNS = ("rates", "seeds", "best rate [95 %]", "multiple of the recipe's", "note")


def seed_noise(finished: Sequence[Run]) -> SeedNoise | None:
    """Pooled over all settings that two seeds or more were trained at."""
    alike: dict[Any, list[float]] = {}
    for run in finished:
        key = yaml.safe_dump(attention_of(run)), without(run.conditions, frozenset({"seed"}))
        alike.setdefault(key, []).append(run.summary["val_loss"])
    return pool_noise(list(alike.values()))


def tune(runs: list[Run], noise: SeedNoise | None) -> Tuning:
    """The best rate of one attention's runs at one rung, which are finished or diverged.

    Raises:
        UserError: they differ in more than rate and seed, or have too few rates.
    """
    finished = [run for run in runs if run.finished]
    conditions = {without(run.conditions, SEARCHED) for run in finished}
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
    found = Tuning(runs, best, notes)
    if found.diverged:
        notes.append(f"diverged at {', '.join(f'{rate:g}' for rate in found.diverged)}")
    return found


def _interval(best: BestRate) -> str:
    return "[-]" if best.interval is None else f"[{best.interval[0]:.3g}, {best.interval[1]:.3g}]"


def attention_of(run: Run) -> dict[str, Any]:
    """All its options."""
    options: Any = OmegaConf.to_container(run.config.attention, resolve=True)
    return {str(name): value for name, value in options.items()}
