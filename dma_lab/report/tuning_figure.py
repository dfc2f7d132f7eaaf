"""Loss over learning rate, backend by backend, with the best rates: of a sweep, and in the report of its runs."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dma_lab.report.attention_options import settings_of
from dma_lab.report.collect import Run
from dma_lab.report.conditions import without
from dma_lab.report.document import Block, Figure, Notice, Section, Series, Table
from dma_lab.report.tuning import (
    CELL_COLUMNS,
    SEARCHED,
    Tuning,
    count_rates,
    rate_of,
    seed_noise,
    sound_runs,
    too_few_rates,
    tune,
    with_those_before,
)
from dma_lab.scaling.tuning import LEAST_RATES


def tuning_figures(slug: str, tunings: Sequence[Tuning]) -> list[Figure]:
    """Of one rung, an attention each; those that differ in settings that tuning may choose have figures of their own,
    each beside the default."""
    plain: list[Tuning] = []
    settings: dict[str, list[Tuning]] = {}
    for own in tunings:
        default, options = settings_of(own.runs[0])
        settings.setdefault(default, []).append(own)
        if not options:
            plain.append(own)
    groups = [plain, *(group for group in settings.values() if len(group) > 1 or group[0] not in plain)]
    groups = [group for group in groups if group]
    return [
        _figure(f"{slug}-{number}" if number > 1 else slug, group, settings=group is not plain)
        for number, group in enumerate(groups, 1)
    ]


def _figure(slug: str, tunings: Sequence[Tuning], *, settings: bool) -> Figure:
    top = max(loss for own in tunings for loss in own.losses)
    series = [part for own in tunings for part in _series(own, top)]
    run = tunings[0].finished[0]
    recipe = tunings[0].recipe
    return Figure(
        slug,
        f"Loss over learning rate: {run.rung}{f', settings of {run.config.attention.name}' if settings else ''}",
        f"{run.summary.tokens:,} tokens. Points: every seed. Curves: the cubic in log rate of each attention (with "
        "fewer than five rates the parabola), shaded: 95 % by the noise over seeds. "
        "Diamond: its lowest point, the bar 95 % of where that may lie by the noise over seeds. Triangle: the best "
        "rate tried, where that is the lowest or highest of them, or losses do not rise to both sides. Cross, at the "
        f"top: a run diverged.{'' if recipe is None else f' The recipe has {recipe:.3g}.'}",
        "learning rate",
        "validation loss (nats per token)",
        series,
        x_log=True,
        unit="a point is one training; bars are over seeds, their noise pooled over rates",
    )


def _series(own: Tuning, top: float) -> list[Series]:
    name, best = own.runs[0].backend, own.best
    over = np.geomspace(min(best.fitted), max(best.fitted), 40)
    found = [
        Series(name, "points", own.rates, own.losses, hover=[run.label for run in own.finished]),
        Series(name, "line", list(over), list(best.loss(over)), faint=True),
    ]
    if (half := best.half_width(over)) is not None:
        found.insert(0, Series(name, "band", list(over), list(best.loss(over) - half), list(best.loss(over) + half)))
    at = float(best.loss(best.rate))
    said = f"{name}: best rate {own.cells[3]}, loss there {own.loss_there}"
    if best.interval is not None:
        # Beyond the rates tried nothing is drawn: the axis would be the interval's alone.
        low, high = np.clip(best.interval, over[0], over[-1])
        found.append(Series(name, "line", [float(low), float(high)], [at, at], hover=[said, said]))
    found.append(Series(name, "points", [best.rate], [at], hover=[said], mark="triangle" if best.edge else "diamond"))
    if own.diverged:
        hover = [f"{name}: diverged at {rate:g}" for rate in own.diverged]
        found.append(Series(name, "points", own.diverged, [top] * len(hover), hover=hover, mark="cross"))
    return found


def learning_rates(members: Sequence[Run]) -> Section | None:
    """The section of a cohort's sweeps; None where no attention was trained at enough rates at any point."""
    swept: dict[Any, dict[str, list[Run]]] = {}
    ended = [run for run in members if run.finished or run.summary.status == "diverged"]
    for run in ended:
        swept.setdefault(without(run.conditions, SEARCHED), {}).setdefault(run.backend, []).append(run)
    for by_backend in swept.values():
        for backend, own in by_backend.items():
            by_backend[backend] = with_those_before(own, [run for run in ended if run.backend == backend])
    sweeps = [runs for by_backend in swept.values() for runs in by_backend.values() if count_rates(runs) >= LEAST_RATES]
    among = [run for runs in sweeps for run in sound_runs(runs)]
    drawn, blocks = 0, list[Block]()
    rows: list[tuple[str, ...]] = []
    for by_backend in swept.values():
        tunings = [tune(own, seed_noise(own, among)) for own in by_backend.values() if count_rates(own) >= LEAST_RATES]
        if tunings:
            drawn += 1
            blocks += tuning_figures(f"tuning-{drawn}", tunings)
            rows += [
                (own.runs[0].backend, own.runs[0].rung, f"{own.runs[0].summary.tokens:,}", *own.cells)
                for own in tunings
            ]
    if lost := _without_a_curve(swept.values()):
        blocks.append(Notice("Of these no best rate is known, for runs of theirs diverged:", lost))
    if not rows:
        return Section("Learning rates", blocks) if blocks else None
    table = Table(
        "The rate of least loss by a cubic in log rate (of fewer than five rates a parabola). Where it lies at an edge "
        "of those tried, or none is lowest, the best of those tried stands, without an interval. The noise over seeds "
        "is an attention's own at its rung from four degrees of freedom on, else its rung's, else that of all.",
        ("attention", "rung", "tokens", *CELL_COLUMNS),
        rows,
        frozenset(("attention", "rung", "note")),
        title="Best learning rates",
        unit="trainings (seeds), their noise pooled over rates",
    )
    return Section("Learning rates", [*blocks, table])


def _without_a_curve(swept: Iterable[dict[str, list[Run]]]) -> list[str]:
    """Of attentions that were swept, those that too many rates diverged for, at each point."""
    return [
        too_few_rates(f"{backend} at {own[0].rung}, {own[0].summary.tokens:,} tokens,", own, own)
        for by_backend in swept
        for backend, own in by_backend.items()
        if count_rates(own) < LEAST_RATES <= len(set(map(rate_of, own)))
    ]
