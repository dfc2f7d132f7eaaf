"""Joint fits against known laws, fits of one backend, and a direct minimisation of the sum."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import huber, logsumexp

from dma_lab.messages import UserError
from dma_lab.scaling.fit import ParametricFit, fit_parametric
from dma_lab.scaling.joint import fit_joint

MHA = ParametricFit(E=1.7, A=400.0, B=2000.0, alpha=0.34, beta=0.37, objective=0.0)
DMA = dataclasses.replace(MHA, A=360.0, B=1500.0, alpha=0.33)
NAMES = ("E", "A", "B", "alpha", "beta")


def runs(law, count=5, noise=0.0, seed=0):
    params = np.repeat(np.geomspace(5e7, 5e9, count), count)
    tokens = np.tile(np.geomspace(1e9, 1e11, count), count)
    return (
        params,
        tokens,
        law.predict(params, tokens) * np.exp(noise * np.random.default_rng(seed).normal(size=len(params))),
    )


@pytest.mark.parametrize("shared", [("E",), ("E", "beta"), ()], ids=str)
def test_what_is_shared_is_equal_and_everything_is_recovered_from_exact_points(shared):
    fit = fit_joint({"mha": runs(MHA), "dma": runs(DMA)}, shared)
    for backend, truth in (("mha", MHA), ("dma", DMA)):
        for name in NAMES:
            assert getattr(fit.laws[backend], name) == pytest.approx(getattr(truth, name), rel=0.01), (backend, name)
    for name in NAMES:
        assert (getattr(fit.laws["mha"], name) == getattr(fit.laws["dma"], name)) == (name in shared)


def test_sharing_nothing_is_fitting_each_backend_alone_and_sharing_all_is_fitting_their_runs_together():
    own = {"mha": runs(MHA, noise=0.005, seed=1), "dma": runs(DMA, noise=0.005, seed=2)}
    apart, together = fit_joint(own, ()), fit_joint(own, NAMES)
    for backend, points in own.items():
        alone = fit_parametric(*points)
        assert apart.laws[backend].objective == pytest.approx(alone.objective, rel=1e-6)
        assert apart.laws[backend].alpha == pytest.approx(alone.alpha, rel=1e-3)
    pooled = fit_parametric(*(np.concatenate(values) for values in zip(*own.values(), strict=True)))
    assert together.objective == pytest.approx(pooled.objective, rel=1e-6)
    assert together.laws["dma"].row == pytest.approx(pooled.row, rel=0.01)


def test_the_minimum_is_that_of_another_minimiser_on_the_sum_written_out():
    own = {"mha": runs(MHA, noise=0.003, seed=3), "nsa": runs(MHA, 4, 0.003, 5), "dma": runs(DMA, noise=0.003, seed=4)}
    fit = fit_joint(own, ("E", "alpha", "beta"))

    def total(unknowns):
        e, alpha, beta, *scales = unknowns
        value = 0.0
        for (params, tokens, loss), a, b in zip(own.values(), scales[::2], scales[1::2], strict=True):
            terms = a - alpha * np.log(params), b - beta * np.log(tokens), np.full(len(loss), e)
            value += huber(1e-3, logsumexp(terms, axis=0) - np.log(loss)).sum()
        return value * 1e6

    laws = fit.laws.values()
    first = next(iter(laws))
    found = [np.log(first.E), first.alpha, first.beta, *(np.log(x) for law in laws for x in (law.A, law.B))]
    assert total(found) / 1e6 == pytest.approx(fit.objective)
    truth = [np.log(1.7), 0.34, 0.37, *np.log([400, 2000] * 3)]
    for start in (found, truth):
        other = minimize(
            total, start, method="Nelder-Mead", options={"maxfev": 20_000, "xatol": 1e-8, "adaptive": True}
        )
        assert total(found) <= other.fun * (1 + 1e-4)


def test_a_backend_of_few_runs_has_a_law_by_what_it_shares_with_another():
    params, tokens, loss = runs(dataclasses.replace(MHA, A=360.0, alpha=0.33))
    few = [0, 12, 23]
    fit = fit_joint({"mha": runs(MHA), "dma": (params[few], tokens[few], loss[few])}, ("E", "beta", "B"))
    assert fit.laws["mha"].A == pytest.approx(400, rel=0.02)
    assert (fit.laws["dma"].A, fit.laws["dma"].alpha) == pytest.approx((360, 0.33), rel=0.02)
    with pytest.raises(UserError, match=r"3 distinct points, cannot fix the law's 4 parameters; run at least 4"):
        fit_joint({"mha": runs(MHA), "dma": (params[few], tokens[few], loss[few])}, ("E",))


def test_sharing_narrows_the_intervals_and_they_hold_the_truth():
    own = {"mha": runs(MHA, noise=0.003, seed=1), "dma": runs(DMA, noise=0.003, seed=2)}
    joint, apart = (fit_joint(own, shared, bootstrap=60) for shared in (("E", "beta"), ()))
    for backend, truth in (("mha", MHA), ("dma", DMA)):
        shared, alone = joint.laws[backend].intervals, apart.laws[backend].intervals
        for name in ("E", "beta", "alpha"):
            low, high = shared[name]
            assert low <= getattr(truth, name) <= high, (backend, name)
            assert high - low < np.diff(alone[name]), (backend, name)
    drawn = [joint.laws[backend].samples for backend in ("mha", "dma")]
    assert (drawn[0][:, [0, 4]] == drawn[1][:, [0, 4]]).all()
    assert (drawn[0][:, 3] != drawn[1][:, 3]).all()


def test_one_backend_or_a_parameter_that_is_none_is_refused():
    with pytest.raises(UserError, match="and has runs of 1"):
        fit_joint({"mha": runs(MHA)})
    with pytest.raises(ValueError, match=r"shared=\['gamma'\]"):
        fit_joint({"mha": runs(MHA), "dma": runs(DMA)}, ("gamma",))
