"""Runs that fix no law are refused, each with what to run instead; runs that do are fitted."""

import dataclasses

import numpy as np
import pytest

from dma_lab.messages import UserError
from dma_lab.scaling.fit import ParametricFit, fit_parametric
from dma_lab.scaling.identification import require_identified
from dma_lab.scaling.joint import fit_joint
from dma_lab.scaling.objective import ONE_LAW, take_points

LAW = ParametricFit(E=1.7, A=400.0, B=2000.0, alpha=0.34, beta=0.37, objective=0.0)
SIZES, TOKENS = np.geomspace(5e7, 5e9, 4), np.geomspace(1e9, 1e11, 4)
GRID = np.repeat(SIZES, 4), np.tile(TOKENS, 4)


def plan(*points):
    return tuple(np.array(axis, float) for axis in zip(*points, strict=True))


DIAGONAL = plan(*((SIZES[i], TOKENS[j]) for i, j in ((0, 0), (0, 3), (1, 1), (2, 2), (3, 0), (3, 3), (1, 3))))
RAY = SIZES.repeat(3), 20 * SIZES.repeat(3) * np.tile([0.99, 1.0, 1.02], 4)


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (plan(*[(5e7, 1e9)] * 4, (5e8, 1e10)), "5 runs of 2 sizes and 2 numbers of tokens, 2 distinct points"),
        (plan(*((5e7, D) for D in TOKENS), (5e8, 1e9)), "5 runs of 2 sizes"),
        (plan(*((N, D) for N in SIZES[:2] for D in TOKENS)), "8 runs of 2 sizes"),
        (plan(*((N, D) for N in SIZES for D in TOKENS[:2])), "4 sizes and 2 numbers of tokens"),
        ((SIZES[:4], TOKENS[:4]), "4 distinct points, cannot fix the law's 5 parameters; run at least 5"),
        (RAY, r"lie on one line, D = 20.\d* N, .* cannot be told apart; .*schedule.branches"),
        ((np.geomspace(5e7, 5e9, 9), 1e5 * np.geomspace(5e7, 5e9, 9) ** 0.5), r"one line, D ∝ N\^0.50"),
        ((np.geomspace(5e7, 5e9, 9), 1e20 / np.geomspace(5e7, 5e9, 9)), r"one line, D ∝ N\^-1.00"),
        # Three sizes by count, two by what they can tell.
        (plan(*((N, D) for N in (5e7, 5.0001e7, 5e9) for D in TOKENS)), r"do not fix .*A.*\(condition"),
    ],
    ids=["two points", "two sizes of five", "two sizes", "two budgets", "four", "ray", "curve", "one compute", "twins"],
)
def test_plans_that_fix_no_law_are_refused_even_without_noise(points, says):
    noise = np.exp(0.005 * np.random.default_rng(0).normal(size=len(points[0])))
    for loss in (LAW.predict(*points), LAW.predict(*points) * noise):
        with pytest.raises(UserError, match=says):
            fit_parametric(*points, loss)


def test_seven_distinct_points_have_a_law_but_no_intervals_however_often_they_are_run():
    loss = LAW.predict(*DIAGONAL)
    assert fit_parametric(*DIAGONAL, loss).alpha == pytest.approx(LAW.alpha, rel=1e-2)
    twice = [np.tile(axis, 2) for axis in (*DIAGONAL, loss)]
    with pytest.raises(UserError, match=r"7 distinct points .* intervals need at least 8"):
        fit_parametric(*twice, bootstrap=40)
    with pytest.raises(UserError, match=r"bootstrap=5: .*at least 20 resamples"):
        fit_parametric(*GRID, LAW.predict(*GRID) * np.linspace(1, 1.01, 16), bootstrap=5)


@pytest.mark.parametrize(
    ("law", "says"),
    [
        ({"E": 0.0, "A": 40.0, "alpha": 0.15}, "E at its bound, 0: .* run larger sizes on more tokens"),
        ({"A": -40.0}, "(A at its bound, 0|alpha = -).*run sizes further apart"),
        ({"B": -40.0, "E": 3.0}, "(B at its bound, 0|beta = -).*run numbers of tokens further apart"),
    ],
    ids=["no floor", "worse with size", "worse with tokens"],
)
def test_laws_at_their_bounds_are_refused_with_the_bound(law, says):
    noise = np.exp(0.002 * np.random.default_rng(1).normal(size=16))
    with pytest.raises(UserError, match=says):
        fit_parametric(*GRID, dataclasses.replace(LAW, **law).predict(*GRID) * noise)


@pytest.mark.parametrize(("exponent", "name", "what"), [(0, "alpha", "sizes"), (1, "beta", "numbers of tokens")])
def test_a_minimum_with_an_exponent_below_zero_is_refused(exponent, name, what):
    minimum = np.array([0.34, 0.37, *np.log([1.7, 400, 2000])])
    points = take_points(*GRID, LAW.predict(*GRID))
    require_identified(minimum, [points], ONE_LAW)
    minimum[exponent] = -0.012
    with pytest.raises(UserError, match=rf"{name} = -0.012, a loss that does not fall with {what}"):
        require_identified(minimum, [points], ONE_LAW)


def test_one_loss_and_losses_that_are_none_are_refused():
    with pytest.raises(UserError, match=r"all 16 runs have the loss 3.1, .* further apart"):
        fit_parametric(*GRID, np.full(16, 3.1))
    for column, name in enumerate(("params", "tokens", "loss")):
        for value in (np.nan, np.inf, 0.0, -1.0):
            values = [*(axis.copy() for axis in GRID), LAW.predict(*GRID)]
            values[column][3] = value
            with pytest.raises(UserError, match=f"{name} of run 3 is {value:g}.*leave out runs that diverged"):
                fit_parametric(*values)


def test_a_resample_whose_floor_is_gone_counts_as_zero_and_not_as_some_tiny_number():
    truth = dataclasses.replace(LAW, E=0.6)
    noise = np.exp(0.02 * np.random.default_rng(2).normal(size=16))
    fit = fit_parametric(*GRID, truth.predict(*GRID) * noise, bootstrap=60)
    low, high = fit.intervals["E"]
    assert low == 0
    assert low < fit.E < high


def test_a_joint_fit_asks_for_the_rank_of_all_its_unknowns():
    grid, ray = ((*points, LAW.predict(*points)) for points in (GRID, RAY))
    with pytest.raises(UserError, match="lie on one line"):
        fit_joint({"mha": grid, "dma": ray}, ("E",))
    # With one beta the terms cannot change places, and MHA's grid fixes the rest.
    assert fit_joint({"mha": grid, "dma": ray}, ("E", "beta")).laws["dma"].alpha == pytest.approx(LAW.alpha, rel=0.01)
    two_sizes = plan(*((N, D) for N in SIZES[:2] for D in TOKENS))
    pair = {"mha": grid, "dma": (*two_sizes, LAW.predict(*two_sizes))}
    with pytest.raises(UserError, match=r"8 runs of 2 sizes|do not fix .*A"):
        fit_joint(pair, ("beta",))
    seven = (*DIAGONAL, LAW.predict(*DIAGONAL))
    with pytest.raises(UserError, match=r"7 distinct points .* intervals need at least 8"):
        fit_joint({"mha": grid, "dma": seven}, bootstrap=40)
