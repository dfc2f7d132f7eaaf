"""Of an attention that was tuned with several settings (DMA's score, say): which is best, and how to ask for each."""

import json
from collections.abc import Sequence
from typing import Any

from dma_lab.report.cohorts import defaults_of
from dma_lab.report.collect import Run
from dma_lab.report.conditions import OF_THE_MACHINE, without
from dma_lab.report.tuning import SEARCHED, Tuning, attention_of


def overrides_of(run: Run) -> str:
    """What gives a run its attention on a command line: every option that is not the backend's default."""
    defaults = defaults_of(run)
    options = {
        name: value
        for name, value in attention_of(run).items()
        if name not in ("name", "package") and (name not in defaults or value != defaults[name])
    }
    words = [
        f"attention.{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items()
    ]
    return " ".join((f"attention={run.config.attention.name}", *words))


def settings_of_least_loss(tunings: Sequence[Tuning]) -> list[str]:
    """A sentence for every attention, rung and number of tokens that was tuned with more than one setting."""
    alike: dict[Any, list[Tuning]] = {}
    for own in tunings:
        run = own.finished[0]
        alike.setdefault((run.attention, run.rung, without(run.conditions, SEARCHED | OF_THE_MACHINE)), []).append(own)
    said = []
    for (attention, rung, _), several in alike.items():
        if len(several) > 1:
            first, second = sorted(several, key=lambda of: float(of.best.loss(of.best.rate)))[:2]
            least = overrides_of(first.runs[0])
            said.append(
                f"{attention} at {rung}: of {len(several)} settings `{least}` has the least loss, {first.loss_there} ("
                "the least of several, which flatters it); the next is "
                f"`{overrides_of(second.runs[0])}`, {second.loss_there}."
            )
    return said
