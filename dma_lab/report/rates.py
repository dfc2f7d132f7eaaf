"""At whose learning rate a backend was trained: one for all, its own tuned one, or the best of several."""

from collections.abc import Sequence
from math import isclose
from typing import Any

from dma_lab.report.collect import BASELINE, Run
from dma_lab.report.conditions import without

SEED_AND_RATE = frozenset({"seed", "tuned", "optimizer.learning_rate"})


def is_tuned(run: Run) -> bool:
    """Whether its rate is that of a file of rates tuned for each backend (``tuned=FILE``)."""
    return run.config.get("tuned") is not None


def at_one_rate(runs: Sequence[Run]) -> list[Run]:
    """Of each backend at each point the runs of one learning rate: of several the recipe's, else the one of least loss
    in the mean over its seeds.
    """
    points: dict[Any, dict[float, list[Run]]] = {}
    for run in runs:
        point = run.backend, without(run.conditions, SEED_AND_RATE)
        points.setdefault(point, {}).setdefault(_rate(run), []).append(run)

    def preference(own: list[Run]) -> tuple[bool, float]:
        return is_recipes(own[0]), -sum(run.loss for run in own) / len(own)

    return [run for by_rate in points.values() for run in max(by_rate.values(), key=preference)]


def at_recipes(runs: Sequence[Run]) -> list[Run]:
    """Of one backend's runs those at the recipe's rate; where there is none, those ``at_one_rate``."""
    return [run for run in runs if is_recipes(run)] or at_one_rate(runs)


def rates_scored(backend: str, scored: Sequence[Run], of_all_rates: Sequence[Run]) -> list[str]:
    """In words: which rates ``at_recipes`` left out, and which it took that are not the recipe's."""
    left = sorted({_rate(run) for run in of_all_rates if run not in scored})
    recipes = {_rate(run): run.summary.recipe_learning_rate for run in scored if not (is_recipes(run) or is_tuned(run))}
    return [
        *([f"{backend}: runs at {', '.join(f'{rate:g}' for rate in left)} are not scored"] if left else []),
        *(
            f"{backend}: scored at {rate:g}, for there is no run at the recipe's {recipe:g}"
            for rate, recipe in sorted(recipes.items())
            if recipe is not None
        ),
    ]


def _rate(run: Run) -> float:
    return float(run.config.optimizer.learning_rate)


def named_in_both(shared: str, tuned: str) -> str:
    """What a backend is called beside itself, by its names at shared and at tuned rates."""
    chosen = [word for word in tuned.split(" ") if word not in shared.split(" ")]
    return f"{shared}, tuned: {' '.join(chosen)}" if chosen else shared


def is_recipes(run: Run) -> bool:
    """Whether its rate is the recipe's."""
    recipe = run.summary.recipe_learning_rate
    return recipe is not None and isclose(run.config.optimizer.learning_rate, recipe, rel_tol=1e-3)


def precedence(run: Run) -> tuple[int, bool, float]:
    """Of several runs of a rung the greatest stands for it: of most tokens, of the recipe's rate, of least loss."""
    return run.summary.tokens, is_recipes(run), -run.loss


def rates_of(finished: Sequence[Run]) -> dict[str, str]:
    """By backend, in words, of a cohort's finished runs; a cohort is tuned as a whole or not at all, but for rates
    by hand beside a file's."""
    tried: dict[str, dict[Any, set[float]]] = {}
    of_mha: dict[Any, set[float]] = {}
    for run in finished:
        rate = _rate(run)
        tried.setdefault(run.backend, {}).setdefault(run.tuned_point, set()).add(rate)
        if run.attention == BASELINE:
            of_mha.setdefault(run.tuned_point, set()).add(rate)
    if is_tuned(finished[0]):
        chosen = {run.backend for run in finished if run.untuned not in ("", run.backend)}
        own_rate = {name: f"its own tuned rate{' and settings' if name in chosen else ''}" for name in tried}
        return {name: _several(own) or own_rate[name] for name, own in tried.items()}
    # Without plain MHA (contexts or batches vary within a rung) any of its variants.
    return {backend: _words(own, tried.get(BASELINE, of_mha)) for backend, own in tried.items()}


def _words(own: dict[Any, set[float]], baseline: dict[Any, set[float]]) -> str:
    if several := _several(own):
        return several
    shared = own.keys() & baseline.keys()
    if not shared:
        return "no point shared with MHA to tell whether the rate is"
    apart = sum(not own[point] <= baseline[point] for point in shared)
    return f"a rate other than MHA's at {apart} of {len(shared)} points" if apart else "shared rate"


def _several(own: dict[Any, set[float]]) -> str:
    """Empty where a point has one rate."""
    most = max(len(rates) for rates in own.values())
    return f"the best of up to {most} rates per point" if most > 1 else ""
