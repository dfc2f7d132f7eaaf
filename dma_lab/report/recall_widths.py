"""Recall by the width of the model, each backend at the best of the learning rates that it was tried at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from dma_lab.report.collect import Run
from dma_lab.report.conditions import TUNED, without
from dma_lab.report.document import Block, Figure, Series, Table

_RATE = frozenset({"seed", *TUNED})


@dataclass(frozen=True)
class Recall:
    """Trainings of one backend at one width and rate, which differ in seed alone."""

    runs: list[Run]
    rates: int
    """That were tried there."""

    @property
    def width(self) -> int:
        return int(self.runs[0].config.model.d_model)

    @property
    def accuracies(self) -> list[float]:
        return [run.accuracy for run in self.runs]

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, Student's t over seeds, within 0 and 1; None of one seed."""
        count = len(self.runs)
        if count < 2:
            return None
        half = float(special.stdtrit(count - 1, 0.975) * np.std(self.accuracies, ddof=1) / np.sqrt(count))
        return max(0.0, self.mean - half), min(1.0, self.mean + half)


def recall_by_width(finished: Sequence[Run]) -> list[Block]:
    """A table of a cohort's finished runs of recall, and of several widths a figure; nothing of fewer than two runs."""
    scored = [run for run in finished if run.summary.val_accuracy is not None]
    if len(scored) < 2:
        return []
    found = _best(scored)
    rows = [
        (
            own.runs[0].backend,
            own.runs[0].config.model.name,
            f"{own.width}",
            f"{own.runs[0].params:,}",
            _text(own),
            f"{len(own.runs)}",
            f"{float(own.runs[0].config.optimizer.learning_rate):g}",
            f"{own.rates}",
        )
        for own in found
    ]
    table = Table(
        "Accuracy: share of queries answered right, the mean over seeds, and 95 % by Student's t over them. Of the "
        "learning rates tried that with the most seeds, and of several such that of the best mean, which luck has a "
        "part in: the more rates, the more.",
        ("attention", "model", "width", "parameters", "accuracy [95 %]", "seeds", "rate", "rates tried"),
        rows,
        frozenset(("attention", "model")),
        frozenset(n for n in range(1, len(found)) if found[n].width != found[n - 1].width),
        title="Recall by width",
        unit="trainings (seeds)",
    )
    return [table, *([_figure(found)] if len({own.width for own in found}) > 1 else [])]


def _best(scored: Sequence[Run]) -> list[Recall]:
    """Of every backend at every rung and budget."""
    places: dict[object, dict[object, list[Run]]] = {}
    for run in scored:
        rates = places.setdefault((run.backend, without(run.conditions, _RATE)), {})
        rates.setdefault(without(run.conditions, frozenset({"seed"})), []).append(run)
    found = [
        max((Recall(runs, len(rates)) for runs in rates.values()), key=lambda own: (len(own.runs), own.mean))
        for rates in places.values()
    ]
    return sorted(found, key=lambda own: own.width)


def _text(own: Recall) -> str:
    if own.interval is None:
        return f"{own.mean:.4f}"
    low, high = own.interval
    return f"{own.mean:.4f} [{low:.4f}, {high:.4f}]"


def _figure(found: Sequence[Recall]) -> Figure:
    series = []
    for backend in dict.fromkeys(own.runs[0].backend for own in found):
        mine = [own for own in found if own.runs[0].backend == backend]
        x, y = [float(own.width) for own in mine], [own.mean for own in mine]
        spread = [(width, *own.interval) for width, own in zip(x, mine, strict=True) if own.interval]
        if spread:
            at, low, high = (list(values) for values in zip(*spread, strict=True))
            series.append(Series(backend, "intervals", at, low, high))
        hover = [f"{backend}, {own.runs[0].config.model.name}: {_text(own)}, {len(own.runs)} seeds" for own in mine]
        series += [Series(backend, "line", x, y), Series(backend, "points", x, y, hover=hover)]
    data = found[0].runs[0].config.data
    return Figure(
        "recall-width",
        "Recall by width",
        f"{data.size.pairs} pairs in {data.size.length:,} tokens: share of queries answered right, the mean over seeds "
        "at the best of the rates tried. Bars: 95 % over seeds.",
        "width of the model (d_model)",
        "accuracy",
        series,
        x_log=True,
        unit="trainings (seeds)",
    )
