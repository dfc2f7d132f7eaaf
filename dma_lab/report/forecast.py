"""Forecasts that are registered: what the laws predict of a larger run is written down before that is trained."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from dma_lab.files import write_whole
from dma_lab.messages import UserError
from dma_lab.model.ladder import rung_parameters, tokens_per_parameter
from dma_lab.report.cohorts import telling_apart
from dma_lab.report.collect import Run
from dma_lab.report.document import Block, Notice, Section, Table
from dma_lab.report.laws import best_runs, fit_laws, training_of
from dma_lab.report.rates import at_recipes, rates_scored
from dma_lab.report.settings import Larger
from dma_lab.report.tables import short_commit
from dma_lab.scaling.trainings import TrainingsFit
from dma_lab.train.runs import git_commit

_SAME = 0.02
"""Largest relative difference of parameters and of tokens to those forecast: matching and whole steps move both."""
_GROUP = ("study", "data_fingerprint", "match", "precision")
"""What a run must have in common with those that the forecast is made of."""

_NOT_TUNED = {"tuned": "None"}


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
    conditions: dict[str, str]
    """Of its runs, those in which runs differ that the report keeps apart, and the file of tuned rates: without that
    they were not tuned."""

    def is_of(self, run: Run) -> bool:
        """Whether it is for a run like this, size and length apart."""
        return (
            run.backend == self.backend
            and all(getattr(run.summary, name) == getattr(self, name) for name in _GROUP)
            and all(str(run.conditions.get(name)) == value for name, value in (_NOT_TUNED | self.conditions).items())
        )


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
        apart = run.params / self.params, run.summary.tokens / self.tokens
        return all(abs(np.log(ratio)) <= _SAME for ratio in apart)


def register(paths: Sequence[Path], larger: Larger, groups: Mapping[str, Sequence[Run]]) -> None:
    """Write what the laws of ``groups``, cohorts, predict of the run ``larger`` to the one of ``paths`` that is not
    there; a file that is there stays as it is.

    Raises:
        UserError: the larger run is not named, is another than the file's, or has been begun; no backend has a law;
            several files are not there.
    """
    new = [path for path in paths if not path.exists()]
    if len(new) > 1:
        raise UserError(f"forecast={new[0]} and {new[1]} do not exist yet; make one forecast at a time.")
    if not new:
        there = [read_forecast(path) for path in paths]
        given = {name: value for name, value in asdict(larger).items() if value is not None}
        if there and all(any(value != getattr(own, name) for name, value in given.items()) for own in there):
            raise UserError(
                f"forecast={paths[0]} holds the forecast of {there[0].name}, made {there[0].made}, which is not "
                "changed afterwards; name another file for another run."
            )
        return
    name, params, tokens = _size_of(larger, new[0])
    entries: list[Entry] = []
    without: list[str] = []
    apart = dict.fromkeys((*telling_apart(groups), *_NOT_TUNED))
    for members in groups.values():
        best = best_runs([run for run in members if run.finished])
        for backend, law in fit_laws(best, lambda step: None).items():
            if isinstance(law, str):
                without.append(f"{backend}: {law}")
                continue
            of = next(run for run in best if run.backend == backend)
            conditions = {own: str(of.conditions.get(own)) for own in apart}
            entries.append(_entry(backend, law, params, tokens, of, conditions))
    made = datetime.now(UTC).isoformat(timespec="seconds")
    forecast = Forecast(name, params, tokens, git_commit(), made, entries, without)
    if begun := [run.name for members in groups.values() for run in members if forecast.is_of(run)]:
        raise UserError(
            f"forecast={new[0]}: {begun[0]} is such a run, and what has begun can no longer be forecast; name a larger."
        )
    if not entries:
        first, others = (without or ["no runs"])[0].rstrip("."), len(without) - 1
        more = f", and so {others} more" if others > 0 else ""
        raise UserError(f"forecast={new[0]}: no backend has a law to forecast by ({first}{more}).")
    write_whole(new[0], json.dumps(asdict(forecast), indent=1) + "\n")


def _size_of(larger: Larger, path: Path) -> tuple[str, float, float]:
    """Name, parameters and tokens: of a rung its own parameters and as many tokens for each as the ladder has, where
    they are not given."""
    own = None if larger.name is None else rung_parameters(larger.name)
    params = larger.params if larger.params is not None else own
    if larger.name is None or params is None or (own is None and larger.tokens is None):
        raise UserError(
            f"forecast={path} does not exist yet, and no run to forecast is given; add for example larger.name=30m, or "
            "for what is no rung larger.name=40m larger.params=4e7 larger.tokens=8e8 (non-embedding parameters)."
        )
    if own is not None and abs(np.log(params / own)) > _SAME:
        raise UserError(
            f"larger.params={params:g} are not those of larger.name={larger.name}, which has {own:,} non-embedding "
            "parameters; leave larger.params out, or choose another name."
        )
    tokens = tokens_per_parameter() * params if larger.tokens is None else larger.tokens
    return larger.name, float(params), float(tokens)


def _entry(backend: str, law: TrainingsFit, params: float, tokens: float, of: Run, conditions: dict[str, str]) -> Entry:
    low, high = law.predicted_interval(params, tokens)
    return Entry(
        backend,
        **{name: getattr(of.summary, name) for name in _GROUP},
        loss=float(law.predict(params, tokens)),
        low=low,
        high=high,
        trainings=law.trainings,
        conditions=conditions,
    )


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


def forecast_section(forecast: Forecast, groups: Mapping[str, Sequence[Run]]) -> Section:
    """What was forecast, and what the runs of ``groups``, cohorts, that were trained since came to.

    Of several learning rates the recipe's is scored (``at_recipes``), the others are named: how losses differ between
    rates is no noise of trainings, and that is what the interval is of.
    """
    such = [run for members in groups.values() for run in members if run.finished and forecast.is_of(run)]
    named = sorted(
        {
            name
            for entry in forecast.backends
            for name, value in entry.conditions.items()
            if (name, value) not in _NOT_TUNED.items()
        }
    )
    rows = []
    notes: list[str] = []
    held, scored = 0, 0
    for entry in forecast.backends:
        of_all_rates = [run for run in such if entry.is_of(run)]
        own = at_recipes(of_all_rates)
        notes += rates_scored(entry.backend, own, of_all_rates)
        # Of one training each: the interval is of one.
        losses = [run.loss for run in {training_of(run): run for run in own}.values()]
        inside = [entry.low <= loss <= entry.high for loss in losses]
        held, scored = held + sum(inside), scored + len(inside)
        rows.append(
            (
                *(entry.backend, *((_NOT_TUNED | entry.conditions)[name] for name in named)),
                *(f"{entry.loss:.4f} [{entry.low:.4f}, {entry.high:.4f}]", f"{entry.trainings}"),
                ", ".join(f"{loss:.4f}" for loss in losses) or "not trained yet",
                _error(float(np.mean(losses)), entry.loss) if losses else "-",
                f"{sum(inside)} of {len(inside)}" if losses else "-",
            )
        )
    said = f" {held} of {scored} trainings came out within." if scored else ""
    blocks: list[Block] = [
        Table(
            f"Registered {forecast.made} at commit {short_commit(forecast.commit)}, before it was trained: the loss of "
            f"{forecast.name}, {forecast.params:,.0f} non-embedding parameters on {forecast.tokens:,.0f} tokens, by "
            f"each backend's law, with an interval that holds 95 % of single trainings; and what came since.{said}",
            (
                *("attention", *named, "forecast [95 %]", "from trainings"),
                *("measured, by training", "mean − forecast", "within"),
            ),
            rows,
            frozenset(("attention", *named)),
            title=f"Forecast of {forecast.name}",
            unit="intervals are of a single training to come",
        )
    ]
    if notes:
        blocks.append(Notice("Learning rates:", notes))
    if forecast.without:
        blocks.append(Notice("Without a law, and so without a forecast:", forecast.without))
    return Section(f"Forecast: {forecast.name}", blocks)


def _error(measured: float, forecast: float) -> str:
    return f"{measured - forecast:+.4f} ({(measured - forecast) / forecast:+.2%})"
