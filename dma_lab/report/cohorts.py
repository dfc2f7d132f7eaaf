"""Which runs may stand in one table, and what each is called there."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dma_lab.attention import find_backend
from dma_lab.attention.controls import telling
from dma_lab.messages import UserError
from dma_lab.report.collect import BASELINE, Run
from dma_lab.report.conditions import SHAPED, Conditions, differing, shared_by_a_study


def cohorts(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs that may share a table, a figure and a law: all alike but in attention, rung, budget, seed, learning rate,
    batch, context and machine. The name says what tells the cohort apart.
    """
    groups: dict[frozenset[tuple[str, Any]], list[Run]] = {}
    for run in runs:
        groups.setdefault(shared_by_a_study(run.conditions), []).append(run)
    further = _varied([dict(group) for group in groups], _SAID)
    # Cohorts at shared and at tuned rates are held against each other: a name means the same attention in both.
    beside: dict[frozenset[tuple[str, Any]], list[Run]] = {}
    for shared, members in groups.items():
        beside.setdefault(but_for_tuning(shared), []).extend(members)
    return {
        _cohort_name(members[0], further): name_runs(members, beside[but_for_tuning(shared)])
        for shared, members in groups.items()
    }


def but_for_tuning(shared: frozenset[tuple[str, Any]]) -> frozenset[tuple[str, Any]]:
    """What a cohort's runs have in common (``shared_by_a_study``) with those at other rates, tuned or not."""
    return frozenset(pair for pair in shared if pair[0] != "tuned")


_SAID = frozenset({"study", "data_fingerprint", "match", "precision", "trainer.validation_tokens"})
"""Of every cohort."""


def telling_apart(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    """Names of the conditions in which cohorts differ, but for those that every cohort's name says."""
    return _varied([dict(shared_by_a_study(members[0].conditions)) for members in groups.values()], _SAID)


def _cohort_name(run: Run, further: Sequence[str]) -> str:
    summary = run.summary
    return ", ".join(
        (
            summary.study,
            f"data {summary.data_fingerprint[:8]}",
            f"matched by {summary.match}",
            summary.precision,
            f"{run.config.trainer.validation_tokens:,} validation tokens",
            *_spelled(run.conditions, further),
        )
    )


def name_runs(runs: Sequence[Run], among: Sequence[Run] | None = None) -> list[Run]:
    """The runs, each with its names. ``backend`` gives the options that vary for its attention or MHA's ``among`` these
    and other runs, where they are not the backend's defaults, or that all MHA has otherwise, those that tuning chose,
    the context and batch that vary within a rung, and the parameters, where matching made several models of one
    attention at a rung, as another version of the code may; ``setting`` whatever else varies at a rung and budget, the
    seed apart. So plain runs keep the plain name beside variants, and plain MHA is the one that laws are compared with.
    """
    options: dict[str, list[dict[str, Any]]] = {}
    rungs: dict[Any, list[Conditions]] = {}
    budgets: dict[Any, list[Conditions]] = {}
    chosen: dict[Any, dict[str, Any]] = {}
    sizes: dict[Any, set[int]] = {}
    for run in runs if among is None else among:
        options.setdefault(run.attention, []).append(_options(run))
        chosen.setdefault(_tuned_by_value(run), {}).update(run.chosen)
    for run in runs:
        rungs.setdefault(run.model, []).append(run.conditions)
        budgets.setdefault((run.model, run.summary.tokens), []).append(run.conditions)
        sizes.setdefault(_matched(run), set()).add(run.params)
    shaped = {rung: [name for name in _varied(found) if name in SHAPED] for rung, found in rungs.items()}
    elsewhere = {"tokens", "seed", *SHAPED}  # which have columns of their own, or are part of the backend
    further = {budget: _varied(found, elsewhere) for budget, found in budgets.items()}
    named = []
    for run in runs:
        peers, defaults = options[run.attention], defaults_of(run)
        # Runs given their rate by hand keep no word of what was chosen, and are the same as those that do.
        varied, tuned = {}, chosen[_tuned_by_value(run)]
        for name, value in _options(run).items():
            theirs = [] if name in telling(run.attention) else [o.get(name, value) for o in options.get(BASELINE, [])]
            unlike = [other != value for other in (*(o.get(name) for o in peers), *theirs)]
            other = (value != defaults.get(name, _NONE) and any(unlike)) or (theirs and value not in theirs)
            if other or name in tuned:
                varied[name] = value
        of_rung = _spelled(run.conditions, shaped[run.model])
        if len(sizes[_matched(run)]) > 1:
            of_rung.append(f"params_non_embedding={run.params}")
        backend, untuned = (
            " ".join((run.attention, *_spelled(varied, names), *of_rung))
            for names in (varied, [name for name in varied if name not in tuned])
        )
        setting = ", ".join(_spelled(run.conditions, further[run.model, run.summary.tokens]))
        named.append(
            dataclasses.replace(run, backend=backend, untuned=untuned, setting=setting, options=frozenset(varied))
        )
    return named


def _varied(conditions: Sequence[Conditions], but: Iterable[str] = ()) -> list[str]:
    """Names of the conditions in which any two differ, sorted."""
    names = {name for other in conditions[1:] for name in differing(conditions[0], other)}
    return sorted(names.difference(but))


def _spelled(values: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    return [f"{name.rpartition('.')[2]}={values.get(name)}" for name in names]


def _tuned_by_value(run: Run) -> Any:
    return run.config.get("tuned"), tuple(sorted((name, repr(value)) for name, value in _options(run).items()))


def _matched(run: Run) -> Any:
    """What decides the width that matching finds."""
    return run.model, repr(run.config.attention), run.summary.context


_NONE = object()


def defaults_of(run: Run) -> dict[str, Any]:
    """What the backend's options are unless set; empty of a backend whose package is not installed here."""
    try:
        options = find_backend(str(run.config.attention.name)).Options
    except UserError:
        return {}
    return {option.name: option.default for option in dataclasses.fields(options)}


def _options(run: Run) -> dict[str, Any]:
    return {str(name): value for name, value in run.config.attention.items() if name != "name"}
