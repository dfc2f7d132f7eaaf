"""The held-out check against a law that goes on and one that breaks."""

import numpy as np
import pytest

from dma_lab.messages import UserError
from dma_lab.scaling.fit import ParametricFit
from dma_lab.scaling.held_out import hold_out_largest
from dma_lab.scaling.trainings import fit_trainings

LAW = ParametricFit(E=1.7, A=400.0, B=2000.0, alpha=0.34, beta=0.37, objective=0.0)


def runs():
    params = np.repeat([5e9, 5e7, 5e8, 1.6e8], 3)  # the largest first: order must not matter
    tokens = np.tile([1e9, 1e10, 1e11], 4)
    return params, tokens, LAW.predict(params, tokens), np.arange(12)


def test_a_law_that_goes_on_predicts_the_largest_rung_and_one_that_breaks_is_found_out():
    params, tokens, loss, training = runs()
    found = hold_out_largest(params, tokens, loss, training)
    assert (found.params, list(found.tokens)) == (5e9, [1e9, 1e10, 1e11])
    assert found.nats < 2e-3
    broken = loss + np.where(params == 5e9, [0.1, 0.2, 0.6] * 4, 0)
    off = hold_out_largest(params, tokens, broken, training)
    assert off.law.row == pytest.approx(found.law.row), "the largest rung has no say in what predicts it"
    assert off.errors == pytest.approx(found.errors - [0.1, 0.2, 0.6])
    assert off.nats == pytest.approx(0.3, abs=2e-3)
    assert off.relative == pytest.approx(np.mean([0.1, 0.2, 0.6] / broken[:3]), abs=1e-3)


def test_the_interval_is_of_the_mean_error_of_trainings_to_come():
    params, tokens, loss, training = runs()
    loss = loss + 0.002 * np.random.default_rng(2).normal(size=len(loss))
    found = hold_out_largest(params, tokens, loss, training, seed=3)
    kept = params < 5e9
    law = fit_trainings(params[kept], tokens[kept], loss[kept], training[kept], seed=3)
    of_law = [
        np.mean([E + A / 5e9**alpha + B / D**beta - L for D, L in zip(tokens[:3], loss[:3], strict=True)])
        for E, A, B, alpha, beta in law.samples
    ]
    low, high = found.mean_error_interval
    assert low < found.errors.mean() < high
    # The three runs to come are a training each, with noise of their own.
    spread = np.sqrt(np.var(of_law) + np.mean(law.noise**2, axis=0).sum() / 3)
    drawn = law.predicted(params[:3], tokens[:3], training[:3], 3).mean(axis=1)
    assert drawn.std() == pytest.approx(spread, rel=0.1)
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn - loss[:3].mean(), (0.025, 0.975))), abs=0.1 * spread)


def test_too_few_runs_below_the_largest_rung_are_refused():
    params, tokens, loss, training = (values[:6] for values in runs())
    with pytest.raises(UserError, match="3 runs of 1 sizes"):
        hold_out_largest(params, tokens, loss, training)
    with pytest.raises(UserError, match="params of run 2 is nan"):
        hold_out_largest([1e6, 2e6, np.nan], [1e8] * 3, [3.0, 2.9, 2.8], [0, 1, 2])
