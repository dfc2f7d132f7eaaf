"""Sweeps of the learning rate: the best rate of an attention at a rung, and how well it is known."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dma_lab.messages import UserError
from dma_lab.report.attention_options import attention_of
from dma_lab.report.collect import Run
from dma_lab.report.conditions import OF_THE_MACHINE, WARMUP, differing, without
from dma_lab.scaling.choice import Tried
from dma_lab.scaling.replicates import OWN_FREEDOM
from dma_lab.scaling.tuning import LEAST_RATES, BestRate, SeedNoise, best_rate, pool_noise
from dma_lab.train.hardware import MACHINE

SEARCHED = frozenset({"optimizer.learning_rate", "seed"})
_SEED_AND_BUDGET = frozenset({"seed", "tokens", WARMUP})
_BEFORE = SEARCHED | OF_THE_MACHINE | {"tokens"}


@dataclass(frozen=True)
class Tuning:
    """The rates that one attention was trained at on one rung, and the best of them."""

    runs: list[Run]
    best: BestRate
    notes: list[str]
    """What must be said of it."""
    noise: SeedNoise | None

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.finished]

    @property
    def rates(self) -> list[float]:
        """Of the finished runs."""
        return [rate_of(run) for run in self.finished]

    @property
    def losses(self) -> list[float]:
        return [run.loss for run in self.finished]

    @property
    def diverged(self) -> list[float]:
        """Rates at which a run did."""
        return diverged_rates(self.runs)

    @property
    def recipe(self) -> float | None:
        """The recipe's rate, when these were trained; None where that is not one rate."""
        found = {run.summary.recipe_learning_rate for run in self.finished}
        value = found.pop()
        return None if found or value is None else float(value)

    @property
    def trainings(self) -> int:
        """That were spent on it: branches of one are one, and so are copies."""
        return len({(rate_of(run), without(run.conditions, _SEED_AND_BUDGET - {"seed"})) for run in self.runs})

    @property
    def tried(self) -> Tried:
        """To be held against other settings."""
        return Tried(self.best, self.noise)

    @property
    def cells(self) -> tuple[str, ...]:
        """Of a table: rates, seeds, trainings, the best and what it is as a multiple of the recipe's, the loss there,
        notes.
        """
        multiple = "-" if self.recipe is None else f"{self.best.rate / self.recipe:.3g}"
        seeds = len({run.summary.seed for run in self.finished})
        best = f"{self.best.rate:.3g} {_interval(self.best)}"
        spent = f"{len(set(self.rates))}", f"{seeds}", f"{self.trainings}"
        return *spent, best, multiple, self.loss_there, "; ".join(self.notes)

    @property
    def loss_there(self) -> str:
        """By the curve, with 95 % by the noise over seeds."""
        loss, half = float(self.best.loss(self.best.rate)), self.best.half_width(self.best.rate)
        return f"{loss:.4f}" if half is None else f"{loss:.4f} [{loss - half:.4f}, {loss + half:.4f}]"


CELL_COLUMNS = (
    *("rates", "seeds", "trainings", "best rate [95 %]", "multiple of the recipe's", "loss there [95 %]"),
    "note",
)


def seed_noise(swept: Sequence[Run], among: Sequence[Run]) -> SeedNoise | None:
    """Of ``swept``, one attention's at one rung, where their seeds suffice; else pooled over its rung ``among`` the
    sound runs of all that are swept, or over all of them. Noise falls with size, and backends differ in it. Budgets,
    which may be branches of the same trainings, are no further degrees of freedom.
    """
    of_rung = [run for run in among if run.model == swept[0].model]
    own = None
    for runs in (sound_runs(swept), of_rung, among):
        trainings: dict[Any, dict[int, list[Run]]] = {}
        for run in runs:
            key = yaml.safe_dump(attention_of(run)), rate_of(run), without(run.conditions, _SEED_AND_BUDGET)
            trainings.setdefault(key, {}).setdefault(run.summary.tokens, []).append(run)
        own = _pooled([[_by_seed(cell) for cell in budgets.values()] for budgets in trainings.values()])
        if own is not None and own.freedom >= OWN_FREEDOM:
            return own
    return own


def swept_runs(runs: list[Run]) -> list[Run] | str:
    """Of one attention's runs at one rung, finished or diverged, those that are a sweep of the rate; or why none are.

    Of several budgets the longest, and of machines all: a study's own runs at the recipe's rate may lie beside others
    at the rates around it, trained later.
    """
    alike: dict[Any, list[Run]] = {}
    for run in runs:
        alike.setdefault(without(run.conditions, SEARCHED | OF_THE_MACHINE), []).append(run)
    sweeps = [own for own in alike.values() if count_rates(own) >= LEAST_RATES]
    place = f"{runs[0].attention} at {runs[0].rung}"
    if not sweeps:
        return too_few_rates(place, max(alike.values(), key=count_rates), runs)
    longest = max(sweeps, key=lambda own: own[0].summary.tokens)
    for own in sweeps:
        apart = set(differing(own[0].conditions, longest[0].conditions)) - SEARCHED - OF_THE_MACHINE
        if apart - ({"tokens", WARMUP} if "tokens" in apart else set()):
            raise UserError(
                f"{place} was swept in runs that differ in more than learning rate and seed ({', '.join(sorted(apart))}"
                "); give runs= the folders of one sweep."
            )
    return with_those_before(longest, runs)


def too_few_rates(place: str, own: Sequence[Run], runs: Sequence[Run]) -> str:
    """Why ``own`` make no curve: of an attention's ``runs`` at a rung those of most rates. That others diverged is no
    reason to run more of them."""
    rates = diverged_rates(runs)
    lost = f" at which none diverged (one did at {_listed(rates)})" if rates else ""
    return (
        f"{place} has finished runs at {count_rates(own)} learning rates{lost}, and a curve takes {LEAST_RATES} or more"
    )


def with_those_before(own: list[Run], runs: Sequence[Run]) -> list[Run]:
    """``own``, of one budget, and those of ``runs`` that diverged as a shorter branch: the training went no further, so
    of this budget there is no run that says so.
    """
    here, tokens = without(own[0].conditions, _BEFORE), own[0].summary.tokens
    return own + [
        run
        for run in runs
        if run.summary.status == "diverged" and run.summary.tokens < tokens and without(run.conditions, _BEFORE) == here
    ]


def count_rates(runs: Sequence[Run]) -> int:
    """Different learning rates at which runs finished and none diverged."""
    return len(set(map(rate_of, sound_runs(runs))))


def tune(runs: list[Run], noise: SeedNoise | None) -> Tuning:
    """The best rate of one attention's runs at one rung, which are a sweep of it, finished or diverged."""
    finished = [run for run in runs if run.finished]
    diverged, sound = diverged_rates(runs), sound_runs(runs)
    losses = _by_rate_and_seed(sound)
    best = best_rate([rate for rate, _ in losses], list(losses.values()), noise)
    notes = []
    if best.edge in ("lowest", "highest"):
        beyond = diverged and (max(diverged) > best.rate if best.edge == "highest" else min(diverged) < best.rate)
        notes.append(
            f"the best is the {best.edge} rate at which no seed diverged"
            if beyond
            else f"the best is the {best.edge} rate tried, so the optimum may lie beyond"
        )
    elif best.edge:
        notes.append("losses do not rise to both sides of the best rate tried")
    elif best.interval is None:
        notes.append(
            "no two seeds tell how well the best rate is known"
            if noise is None
            else "the noise over seeds leaves the optimum open"
        )
    if len(seeds := {tuple(sorted(of)) for of in _seeds(losses).values()}) > 1:
        listed = " and ".join(", ".join(map(str, own)) for own in sorted(seeds))
        notes.append(f"not every rate has the same seeds ({listed}): which rates they fell to is in the curve")
    if len(best.fitted) < len(set(map(rate_of, sound))):
        notes.append(f"the curve is of the {len(best.fitted)} rates about the best: no cubic goes through all")
    if (machines := len({tuple(run.conditions[name] for name in MACHINE) for run in finished})) > 1:
        notes.append(f"trained on {machines} kinds of machine, whose rounding is taken for noise")
    if diverged:
        notes.append(f"diverged at {_listed(diverged)}")
    return Tuning(runs, best, notes, noise)


def rate_of(run: Run) -> float:
    """Its learning rate."""
    return float(run.config.optimizer.learning_rate)


def diverged_rates(runs: Sequence[Run]) -> list[float]:
    """Of one attention at one rung the rates at which a run did, whatever other seeds came to."""
    return sorted({rate_of(run) for run in runs if not run.finished})


def sound_runs(runs: Sequence[Run]) -> list[Run]:
    """Of one attention's at one rung those that finished at rates at which none diverged: of these the best is one."""
    diverged = diverged_rates(runs)
    return [run for run in runs if run.finished and rate_of(run) not in diverged]


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


def _pooled(trainings: Sequence[Sequence[dict[int, float]]]) -> SeedNoise | None:
    """Of losses by seed, of the budgets of each training: those have one variance, and the freedom of the largest."""
    squares, freedom = 0.0, 0
    for budgets in trainings:
        if noise := pool_noise([list(losses.values()) for losses in budgets]):
            own = max(map(len, budgets)) - 1
            squares, freedom = squares + own * noise.variance, freedom + own
    return SeedNoise(squares / freedom, freedom) if freedom else None


def _by_rate_and_seed(runs: Sequence[Run]) -> dict[tuple[float, int], float]:
    """Losses. A seed that was run twice at a rate, or whose run was read twice, is one training."""
    found: dict[tuple[float, int], list[float]] = {}
    for run in runs:
        found.setdefault((rate_of(run), run.summary.seed), []).append(run.loss)
    return {key: sum(losses) / len(losses) for key, losses in found.items()}


def _by_seed(runs: Sequence[Run]) -> dict[int, float]:
    """The same of one rate."""
    return {seed: loss for (_, seed), loss in _by_rate_and_seed(runs).items()}


def _seeds(points: Iterable[tuple[float, int]]) -> dict[float, set[int]]:
    """By rate."""
    found: dict[float, set[int]] = {}
    for rate, seed in points:
        found.setdefault(rate, set()).add(seed)
    return found


def _interval(best: BestRate) -> str:
    return "[-]" if best.interval is None else f"[{best.interval[0]:.3g}, {best.interval[1]:.3g}]"
