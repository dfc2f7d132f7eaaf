"""Forecasts that are registered: what the laws predict of a larger run is written down before that is trained."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from dma_lab.files import write_whole
from dma_lab.messages import UserError
from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import Run
from dma_lab.report.document import Block, Notice, Section, Table
from dma_lab.report.laws import best_runs, fit_laws, training_of
from dma_lab.report.settings import Larger
from dma_lab.report.tables import short_commit
from dma_lab.scaling.trainings import TrainingsFit
from dma_lab.train.runs import git_commit

_SAME = 0.02
"""Largest relative difference of parameters and of tokens to those forecast: matching and whole steps move both."""
_GROUP = ("study", "data_fingerprint", "match", "precision")
"""What a run must have in common with those that the forecast is made of."""


@dataclass(frozen=True)
class Entry:
    """The forecast of one backend."""

    backend: str
    study: str
    data_fingerprint: str
    match: str
    precision: str
    loss: float
    """By the law, nats per token."""
    low: float
    """95 %: where the loss of one training to come lies."""
    high: float
    trainings: int
    """That the law was fitted to."""


@dataclass(frozen=True)
class Forecast:
    """What a file holds."""

    name: str
    params: float
    tokens: float
    commit: str
    made: str
    backends: list[Entry]
    without: list[str]
    """Backends without a law, and why."""

    def is_of(self, run: Run) -> bool:
        """Whether a run has the size and length forecast."""
        apart = run.params / self.params, run.summary["tokens"] / self.tokens
        return all(abs(np.log(ratio)) <= _SAME for ratio in apart)


def register(path: Path, larger: Larger, runs: Sequence[Run]) -> None:
    """Write to ``path`` what the laws of ``runs`` predict of the run ``larger``; a file that is there stays as it is.

    Raises:
        UserError: the larger run is not named, is another than the file's, or has been begun; no backend has a law.
    """
    if path.exists():
        there = read_forecast(path)
        given = {name: value for name, value in asdict(larger).items() if value is not None}
        if any(value != getattr(there, name) for name, value in given.items()):
            raise UserError(
                f"forecast={path} holds the forecast of {there.name}, made {there.made}, which is not changed "
                "afterwards; name another file for another run."
            )
        return
    if larger.name is None or larger.params is None or larger.tokens is None:
        raise UserError(
            f"forecast={path} does not exist yet, and no run to forecast is given; add for example larger.name=10m "
            "larger.params=1e7 larger.tokens=2e8, say (non-embedding parameters)."
        )
    entries: list[Entry] = []
    without: list[str] = []
    for members in cohorts(runs).values():
        finished = [run for run in members if run.finished]
        best = best_runs(finished)
        for backend, law in fit_laws(best, lambda step: None).items():
            if isinstance(law, str):
                without.append(f"{backend}: {law}")
                continue
            summary = next(run.summary for run in best if run.backend == backend)
            group = {name: summary[name] for name in _GROUP}
            entries.append(_entry(backend, law, larger.params, larger.tokens, group))
    made = datetime.now(UTC).isoformat(timespec="seconds")
    forecast = Forecast(larger.name, larger.params, larger.tokens, git_commit(), made, entries, without)
    if begun := [run.name for run in runs if forecast.is_of(run)]:
        raise UserError(
            f"forecast={path}: {begun[0]} is such a run, and what has begun can no longer be forecast; name a larger."
        )
    if not entries:
        raise UserError(f"forecast={path}: no backend has a law to forecast by ({'; '.join(without) or 'no runs'}).")
    write_whole(path, json.dumps(asdict(forecast), indent=1) + "\n")


def _entry(backend: str, law: TrainingsFit, params: float, tokens: float, group: dict[str, str]) -> Entry:
    low, high = law.predicted_interval(params, tokens)
    return Entry(backend, **group, loss=float(law.predict(params, tokens)), low=low, high=high, trainings=law.trainings)


def read_forecast(path: Path) -> Forecast:
    """The forecast in ``path``.

    Raises:
        UserError: the file holds none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Forecast(**found | {"backends": [Entry(**entry) for entry in found["backends"]]})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"forecast={path} holds no forecast ({type(error).__name__}); name one that report.py wrote, or a new one."
        ) from None


def forecast_section(path: Path, runs: Sequence[Run]) -> Section:
    """What was forecast, and what the runs that were trained since came to."""
    forecast = read_forecast(path)
    rows = []
    held, scored = 0, 0
    for entry in forecast.backends:
        own = [
            run
            for run in runs
            if run.finished
            and run.backend == entry.backend
            and forecast.is_of(run)
            and all(run.summary[name] == getattr(entry, name) for name in _GROUP)
        ]
        # Of one training each: the interval is of one.
        losses = [float(run.summary["val_loss"]) for run in {training_of(run): run for run in own}.values()]
        inside = [entry.low <= loss <= entry.high for loss in losses]
        held, scored = held + sum(inside), scored + len(inside)
        rows.append(
            (
                *(entry.backend, f"{entry.loss:.4f} [{entry.low:.4f}, {entry.high:.4f}]", f"{entry.trainings}"),
                ", ".join(f"{loss:.4f}" for loss in losses) or "not trained yet",
                f"{np.mean(losses) - entry.loss:+.4f}" if losses else "-",
                f"{sum(inside)} of {len(inside)}" if losses else "-",
            )
        )
    said = f" {held} of {scored} trainings came out within." if scored else ""
    blocks: list[Block] = [
        Table(
            f"Registered {forecast.made} at commit {short_commit(forecast.commit)}, before it was trained: the loss of "
            f"{forecast.name}, {forecast.params:,.0f} non-embedding parameters on {forecast.tokens:,.0f} tokens, by "
            f"each backend's law, with an interval that holds 95 % of single trainings; and what came since.{said}",
            ("attention", "forecast [95 %]", "from trainings", "measured, by training", "mean − forecast", "within"),
            rows,
            frozenset(("attention",)),
            title=f"Forecast of {forecast.name}",
            unit="intervals are of a single training to come",
        )
    ]
    if forecast.without:
        blocks.append(Notice("Without a law, and so without a forecast:", forecast.without))
    return Section("Forecast", blocks)
