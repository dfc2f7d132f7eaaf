"""The held-out check against a law that goes on and one that breaks."""

import numpy as np
import pytest

from dma_lab.messages import UserError
from dma_lab.scaling.fit import ParametricFit, fit_parametric
from dma_lab.scaling.held_out import hold_out_largest

LAW = ParametricFit(E=1.7, A=400.0, B=2000.0, alpha=0.34, beta=0.37, objective=0.0)


def runs():
    params = np.repeat([5e9, 5e7, 5e8, 1.6e8], 3)  # the largest first: order must not matter
    tokens = np.tile([1e9, 1e10, 1e11], 4)
    return params, tokens, LAW.predict(params, tokens)


def test_a_law_that_goes_on_predicts_the_largest_rung_and_one_that_breaks_is_found_out():
    params, tokens, loss = runs()
    found = hold_out_largest(params, tokens, loss)
    assert (found.params, list(found.tokens)) == (5e9, [1e9, 1e10, 1e11])
    assert found.nats < 2e-3
    assert found.mean_error_interval is None
    broken = loss + np.where(params == 5e9, [0.1, 0.2, 0.6] * 4, 0)
    off = hold_out_largest(params, tokens, broken)
    assert off.law.row == pytest.approx(found.law.row), "the largest rung has no say in what predicts it"
    assert off.errors == pytest.approx(found.errors - [0.1, 0.2, 0.6])
    assert off.nats == pytest.approx(0.3, abs=2e-3)
    assert off.relative == pytest.approx(np.mean([0.1, 0.2, 0.6] / broken[:3]), abs=1e-3)


def test_the_interval_is_of_the_mean_error_of_the_resampled_laws():
    params, tokens, loss = runs()
    loss = loss * np.exp(0.002 * np.random.default_rng(2).normal(size=len(loss)))
    found = hold_out_largest(params, tokens, loss, bootstrap=40, seed=3)
    kept = params < 5e9
    samples = fit_parametric(params[kept], tokens[kept], loss[kept], bootstrap=40, seed=3).samples
    errors = sorted(
        np.mean([E + A / 5e9**alpha + B / D**beta - L for D, L in zip(tokens[:3], loss[:3], strict=True)])
        for E, A, B, alpha, beta in samples
    )
    low, high = found.mean_error_interval
    assert (low, high) == pytest.approx((errors[0], errors[38]))  # 2.5 % and 97.5 % of 40
    assert low < found.errors.mean() < high


def test_too_few_runs_below_the_largest_rung_are_refused():
    params, tokens, loss = (values[:6] for values in runs())
    with pytest.raises(UserError, match="3 runs of 1 sizes"):
        hold_out_largest(params, tokens, loss)
    with pytest.raises(UserError, match="params of run 2 is nan"):
        hold_out_largest([1e6, 2e6, np.nan], [1e8] * 3, [3.0, 2.9, 2.8])
