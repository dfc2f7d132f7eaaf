"""What a group of runs comes to, computed first and in one object: tables, figures and sentences are made of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dma_lab.attention.controls import telling
from dma_lab.messages import UserError
from dma_lab.report.collect import BASELINE, Run
from dma_lab.report.comparison import Comparison, compare
from dma_lab.report.growth import AHEAD, Exponents, cost_of, exponents_of
from dma_lab.report.laws import Laws, best_runs, fit_laws, points_of, published_laws
from dma_lab.report.rates import rates_of
from dma_lab.scaling.difference import weigh_for_difference
from dma_lab.scaling.fit import ParametricFit
from dma_lab.scaling.held_out import HeldOut, hold_out_largest
from dma_lab.scaling.optimum import Multiplier, Optimum, compute_multiplier, compute_optimal
from dma_lab.scaling.shared_floor import share_floor
from dma_lab.scaling.trainings import TrainingsFit

_BUDGETS = 9
"""Of a curve over compute."""


@dataclass(frozen=True)
class ToMatch:
    """Executed compute that a backend needs for the loss of compute-optimal MHA, as a multiple of MHA's; or beside a
    variant of MHA."""

    law: TrainingsFit
    """Of the backend, with E shared with MHA's."""
    multipliers: list[Multiplier]
    """At ``AHEAD`` times the largest budget that MHA was run at."""
    over: list[Multiplier] = field(default_factory=list)
    """At budgets from the smallest that MHA was run at to the largest."""


@dataclass(frozen=True)
class Frontier:
    """The least loss that a backend's law gives for executed compute, within the budgets it was run at."""

    flops: NDArray[np.float64]
    loss: NDArray[np.float64]
    low: NDArray[np.float64]
    """Of 95 % over trainings."""
    high: NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Of the finished runs of one cohort; dictionaries are by backend, refusals are whole lines."""

    finished: list[Run]
    comparison: Comparison
    best: list[Run]
    """Of runs that differ in a tuned setting alone the best: what laws are fitted to."""
    laws: Laws
    published: dict[str, ParametricFit]
    """The literature's fit, of the backends that have a law."""
    exponents: list[Exponents]
    optima: dict[str, list[Optimum]]
    """At ``AHEAD`` times the largest executed budget run."""
    rates: dict[str, str]
    """At whose learning rate, in words."""
    frontiers: dict[str, Frontier] = field(default_factory=dict)
    to_match: dict[str, ToMatch] = field(default_factory=dict)
    """Beside plain MHA."""
    beside_variants: dict[tuple[str, str], ToMatch] = field(default_factory=dict)
    """Of backends with options that a variant of MHA has, too: by both names, the multiple of that variant's compute.
    """
    held_out: dict[str, HeldOut] = field(default_factory=dict)
    no_exponents: list[str] = field(default_factory=list)
    no_match: list[str] = field(default_factory=list)
    no_held_out: list[str] = field(default_factory=list)

    @property
    def backends(self) -> list[str]:
        """MHA first, then the other backends, then their controls; variants after what they vary."""
        attention = {run.backend: run.attention for run in self.finished}
        return sorted(attention, key=lambda name: (attention[name] != BASELINE, bool(telling(attention[name])), name))

    @property
    def fitted(self) -> dict[str, TrainingsFit]:
        """The laws that there are."""
        return {backend: law for backend, law in self.laws.items() if isinstance(law, TrainingsFit)}

    @property
    def trainings(self) -> dict[str, int]:
        """How many trainings each backend has among ``best``."""
        return {
            backend: len(set(points_of([run for run in self.best if run.backend == backend])[3]))
            for backend in dict.fromkeys(run.backend for run in self.best)
        }


def compute_statistics(finished: Sequence[Run], progress: Callable[[str], None]) -> Statistics:
    """All that the report says of ``finished``, which are a cohort's; ``progress`` is told what comes next."""
    best = best_runs(finished)
    laws = fit_laws(best, progress)
    exponents, no_exponents = exponents_of(best, laws)
    published = published_laws(best, laws)
    found = Statistics(
        list(finished),
        compare(finished),
        best,
        laws,
        published,
        exponents,
        {},
        rates_of(finished),
        no_exponents=no_exponents,
    )
    largest = max(run.summary.flops_executed for run in best)
    for backend, law in found.fitted.items():
        own = [run for run in best if run.backend == backend]
        found.optima[backend] = [compute_optimal(law, ahead * largest, cost_of(own)) for ahead in AHEAD]
        found.frontiers[backend] = _frontier(law, own)
        progress(f"comparing laws of {backend} and {BASELINE}")
        if backend != BASELINE:
            _match(found, backend)
        progress(f"holding out the largest size of {backend}")
        try:
            found.held_out[backend] = hold_out_largest(*points_of(own), elsewhere=law.elsewhere)
        except UserError as error:
            found.no_held_out.append(f"{backend}: {error}")
    for backend, refusal in laws.items():
        if isinstance(refusal, str) and backend != BASELINE:
            found.no_match.append(f"{backend}: {refusal}")
    if not isinstance(laws.get(BASELINE), TrainingsFit):
        found.no_match.extend(f"{backend}: {BASELINE} has no law to be compared with" for backend in found.fitted)
    return found


def _match(found: Statistics, backend: str) -> None:
    """Beside plain MHA, and beside every variant of it that the backend is paired with."""
    for beside in dict.fromkeys((BASELINE, *found.comparison.besides(backend))):
        if beside not in found.fitted:
            continue
        try:
            match = _to_match(found, backend, beside)
        except UserError as error:
            found.no_match.append(f"{backend}{'' if beside == BASELINE else f' beside {beside}'}: {error}")
            continue
        if beside == BASELINE:
            found.to_match[backend] = match
        else:
            found.beside_variants[backend, beside] = match


def _to_match(found: Statistics, backend: str, beside: str) -> ToMatch:
    shared, shared_baseline = share_floor(found.fitted[backend], found.fitted[beside])
    law, baseline = weigh_for_difference(shared, shared_baseline)
    own, theirs = ([run for run in found.best if run.backend == name] for name in (backend, beside))
    spent = [run.summary.flops_executed for run in theirs]
    budgets = np.geomspace(min(spent), max(spent), _BUDGETS)
    costs = cost_of(own), cost_of(theirs)
    over, ahead = (
        [compute_multiplier(law, baseline, float(flops), *costs) for flops in at]
        for at in (budgets[:-1], [times * max(spent) for times in AHEAD])
    )
    return ToMatch(shared, ahead, [*over, ahead[0]])


def _frontier(law: TrainingsFit, own: Sequence[Run]) -> Frontier:
    spent, cost = [run.summary.flops_executed for run in own], cost_of(own)
    flops = np.geomspace(min(spent), max(spent), _BUDGETS)
    optima = [compute_optimal(law, float(budget), cost) for budget in flops]
    low, high = np.array([best.loss_interval for best in optima]).T
    return Frontier(flops, np.array([best.loss for best in optima]), low, high)
