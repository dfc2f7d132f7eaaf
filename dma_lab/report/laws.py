"""A scaling law for every backend that has the runs for one, and curves to draw of it."""

import contextlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from dma_lab.messages import UserError
from dma_lab.report.collect import Run
from dma_lab.report.conditions import WARMUP, without
from dma_lab.scaling.fit import ParametricFit, fit_parametric
from dma_lab.scaling.frontier import law_loss
from dma_lab.scaling.noise_by_size import powers_elsewhere
from dma_lab.scaling.trainings import TrainingsFit, fit_trainings

_STEEPEST = 2.0
"""No exponent of a loss is known to come near it; the published grid of starts ends there."""
_FLATTEST = 0.02
"""An exponent below is none: a hundredfold takes a tenth off its term."""
Laws = dict[str, TrainingsFit | str]


def best_runs(runs: Iterable[Run]) -> list[Run]:
    """Of runs of one backend that differ in their learning rate alone the one of least loss: laws are of those.

    A minimum over luck as much as over rates: points of more rates look a little better than they are, and
    the page says so.
    """
    best: dict[tuple[str, Any], Run] = {}
    for run in runs:
        key = run.backend, run.tuned_point
        if key not in best or run.loss < best[key].loss:
            best[key] = run
    return list(best.values())


def training_of(run: Run) -> Hashable:
    """Equal in the branches of one training, and in plain runs that equal them: these share its noise."""
    return run.backend, without(run.conditions, frozenset({"tokens", WARMUP}))


def counts_of(runs: Sequence[Run]) -> dict[str, list[float]]:
    """By what is counted: parameters of each run. A head that is the embedding is counted once, among all."""
    total = [float(run.summary.params_total) for run in runs]
    counts = {"without embeddings": [float(run.params) for run in runs]}
    tied = [OmegaConf.select(run.config, "model.tie_embeddings", default=True) for run in runs]
    if not any(tied):  # embedding and head are of one size
        counts["with the head"] = [(run.params + every) / 2 for run, every in zip(runs, total, strict=True)]
    return counts | {"all": total}


def points_of(runs: Sequence[Run]) -> tuple[list[float], list[float], list[float], list[int]]:
    """Non-embedding parameters, tokens, validation losses and trainings (numbered) of one backend's runs."""
    numbers: dict[Hashable, int] = {}
    training = [numbers.setdefault(training_of(run), len(numbers)) for run in runs]
    tokens = [float(run.summary.tokens) for run in runs]
    return [run.params for run in runs], tokens, [run.loss for run in runs], training


def fit_laws(runs: Sequence[Run], progress: Callable[[str], None]) -> Laws:
    """By backend: the law fitted to its runs, or why there is none. Deterministic.

    ``progress`` is told what comes next.
    """
    laws: Laws = {}
    points = {
        backend: points_of([run for run in runs if run.backend == backend])
        for backend in dict.fromkeys(run.backend for run in runs)
    }
    elsewhere = powers_elsewhere(points)
    for backend, own in points.items():
        progress(f"fitting {backend}")
        try:
            fit = fit_trainings(*own, elsewhere=elsewhere[backend])
        except UserError as error:
            laws[backend] = str(error)
        else:
            laws[backend] = vagueness(fit) or fit
    return laws


def published_laws(runs: Sequence[Run], laws: Laws) -> dict[str, ParametricFit]:
    """Of the backends that have a law: the literature's fit to the same runs, Huber's loss on the logarithm."""
    found = {}
    for backend, law in laws.items():
        if isinstance(law, TrainingsFit):
            points = points_of([run for run in runs if run.backend == backend])
            with contextlib.suppress(UserError):  # at a bound, where least squares is not
                found[backend] = fit_parametric(*points[:3])
    return found


def vagueness(fit: TrainingsFit) -> str | None:
    """What the runs leave open of the law, if that is too much: an exponent that could as well be 0, or anything."""
    assert fit.intervals is not None
    exponents = {"α (of size)": fit.intervals["alpha"], "β (of tokens)": fit.intervals["beta"]}
    vague = [
        f"{name} in [{low:.2g}, {high:.2g}]"
        for name, (low, high) in exponents.items()
        if low < _FLATTEST or high > _STEEPEST
    ]
    return f"the runs do not fix the exponents, {' and '.join(vague)}" if vague else None


def band(
    fit: TrainingsFit, params: float, tokens: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % band of the law, noise apart, for one size of model over ``tokens``."""
    assert fit.samples is not None
    drawn = law_loss(fit.samples[:, None], np.log(params), np.log(tokens))
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return low, high
