"""Of an attention that was tuned with several settings (DMA's score, say): which is chosen, and how to ask for each."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dma_lab.report.attention_options import attention_of, settings_of
from dma_lab.report.cohorts import defaults_of
from dma_lab.report.collect import Run
from dma_lab.report.conditions import OF_THE_MACHINE, without
from dma_lab.report.tuning import SEARCHED, Tuning
from dma_lab.scaling.choice import Gain, gain_over
from dma_lab.train.tuned import TunedChoice

BySize = Mapping[int, Tuning]
"""Of one attention with one setting, by its rungs' sizes."""


def overrides_of(run: Run) -> str:
    """What gives a run its attention on a command line: every option that is not the backend's default."""
    defaults = defaults_of(run)
    options = {
        name: value
        for name, value in attention_of(run).items()
        if name not in ("name", "package") and (name not in defaults or value != defaults[name])
    }
    return " ".join((f"attention={run.config.attention.name}", *spelled(options)))


def spelled(options: Mapping[str, Any]) -> list[str]:
    """Options of an attention as on a command line."""
    return [
        f"attention.{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items()
    ]


@dataclass(frozen=True)
class _Setting:
    options: dict[str, Any]
    """That tuning may choose and that are not the default's."""
    by_size: BySize


def chosen_settings(tuned: Iterable[BySize]) -> dict[str, TunedChoice]:
    """By the attention (YAML) whose default settings are replaced, or stay: of every one that was tuned with others,
    too. The setting of most gain over the default is chosen, of those that are shown to be better than it
    (``dma_lab.scaling.choice``).
    """
    groups: dict[str, list[_Setting]] = {}
    for by_size in tuned:
        default, options = settings_of(_run(by_size))
        groups.setdefault(default, []).append(_Setting(options, by_size))
    return {default: _choose(settings) for default, settings in groups.items() if len(settings) > 1}


def _choose(settings: list[_Setting]) -> TunedChoice:
    """Between those of one attention."""
    trainings = sum(tuning.trainings for own in settings for tuning in own.by_size.values())
    default = next((own for own in settings if not own.options), None)

    def of(options: dict[str, Any], said: str) -> TunedChoice:
        return TunedChoice(options, len(settings), trainings, f"of {len(settings)} settings tried {said}")

    if default is None:
        return of({}, "none is chosen: the default, which they are compared with, was not swept")
    compared = [(own, _common(default, own)) for own in settings if own.options]
    found = [(own, rungs, _gain(rungs, len(compared))) for own, rungs in compared if rungs]
    if not found:
        return of({}, "none is chosen: none was swept at a rung and over tokens at which the default was")
    edges = [first.finished[0].rung for _, rungs, _ in found for first, _ in rungs if first.best.edge]
    if edges:
        where = " and ".join(dict.fromkeys(edges))
        return of({}, f"none is chosen: the best rate of the default, which they are compared with, is open at {where}")
    shown = [entry for entry in found if entry[2].shown]
    own, rungs, gain = max(shown or found, key=lambda entry: entry[2].nats)
    named = f"{' '.join(spelled(own.options))} ({_words(rungs, gain)})"
    if not shown:
        return of({}, f"none is shown to be better than the default, the most {named}")
    return of(own.options, f"{named} is chosen, which looks the better for being the best of them")


def _gain(rungs: list[tuple[Tuning, Tuning]], compared: int) -> Gain:
    return gain_over([(default.tried, own.tried) for default, own in rungs], compared)


def _common(default: _Setting, other: _Setting) -> list[tuple[Tuning, Tuning]]:
    """The rungs at which both were swept under equal conditions."""
    pairs = [(default.by_size[size], own) for size, own in other.by_size.items() if size in default.by_size]
    apart = SEARCHED | OF_THE_MACHINE
    return [
        (ours, theirs)
        for ours, theirs in pairs
        if without(ours.finished[0].conditions, apart) == without(theirs.finished[0].conditions, apart)
    ]


def _words(rungs: list[tuple[Tuning, Tuning]], gain: Gain) -> str:
    where = " and ".join(own.finished[0].rung for own, _ in rungs)
    how = "below" if gain.nats > 0 else "above"
    each = "" if gain.everywhere or gain.nats < 0 else ", not at each"
    return f"{abs(gain.nats):.4f} nats {how} the default's loss at {where}{each}, p {gain.p_value:.2g} by Bonferroni"


def _run(by_size: BySize) -> Run:
    return next(iter(by_size.values())).runs[0]
