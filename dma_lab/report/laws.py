"""A scaling law for every backend that has the runs for one, and curves to draw of it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dma_lab.messages import UserError
from dma_lab.report.collect import Run
from dma_lab.scaling.fit import ParametricFit, fit_parametric

BOOTSTRAP = 100
_STEEPEST = 2.0
"""No exponent of a loss is known to come near it; the published grid of starts ends there."""
Laws = dict[str, ParametricFit | str]


def best_runs(runs: Iterable[Run]) -> list[Run]:
    """Of runs of one backend that differ in their learning rate alone the one of least loss: laws are of those.

    A minimum over luck as much as over rates: points of more rates look a little better than they are, and
    the page says so.
    """
    best: dict[tuple[str, Any], Run] = {}
    for run in runs:
        key = run.backend, run.tuned_point
        if key not in best or run.summary["val_loss"] < best[key].summary["val_loss"]:
            best[key] = run
    return list(best.values())


def fit_laws(runs: Sequence[Run], progress: Callable[[str], None]) -> Laws:
    """By backend: the law fitted to its runs (non-embedding parameters, tokens, validation loss), or why there is none.

    Deterministic. Of runs that differ only in their seed every one is a point. ``progress`` is told what comes next.
    """
    laws: Laws = {}
    for backend in dict.fromkeys(run.backend for run in runs):
        own = [run for run in runs if run.backend == backend]
        points = ([run.params for run in own], *([run.summary[of] for run in own] for of in ("tokens", "val_loss")))
        progress(f"fitting {backend}")
        try:
            fit = fit_parametric(*points, bootstrap=BOOTSTRAP)
        except UserError as error:
            laws[backend] = str(error)
        else:
            laws[backend] = vagueness(fit) or fit
    return laws


def vagueness(fit: ParametricFit) -> str | None:
    """What the runs leave open of the law, if that is too much: an exponent that could as well be 0, or anything."""
    assert fit.intervals is not None
    exponents = {"α (of size)": fit.intervals["alpha"], "β (of tokens)": fit.intervals["beta"]}
    vague = [
        f"{name} in [{low:.2g}, {high:.2g}]" for name, (low, high) in exponents.items() if low <= 0 or high > _STEEPEST
    ]
    return f"the runs do not fix the exponents, {' and '.join(vague)}" if vague else None


def band(fit: ParametricFit, params: float, tokens: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """95 % bootstrap band of the law for one size of model over ``tokens``."""
    assert fit.samples is not None
    E, A, B, alpha, beta = fit.samples.T[..., None]
    # In logarithms: a resample of few runs may have an A beyond all floats that its alpha makes small again.
    with np.errstate(divide="ignore"):
        by_size, by_tokens = np.log(A) - alpha * np.log(params), np.log(B) - beta * np.log(tokens)
    low, high = np.quantile(E + np.exp(by_size) + np.exp(by_tokens), (0.025, 0.975), axis=0)
    return low, high
