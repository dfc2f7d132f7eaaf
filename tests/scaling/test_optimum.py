"""Compute-optimal models and compute multipliers against closed forms and brute force, and at their stated rate."""

import dataclasses

import numpy as np
import pytest
import torch

from dma_lab.model import ModelShape, Transformer
from dma_lab.model.accounting import count_parameters, training_flops_per_sequence
from dma_lab.scaling.cost import Cost
from dma_lab.scaling.fit import ParametricFit, natural, with_intervals
from dma_lab.scaling.interval import percentile_interval
from dma_lab.scaling.objective import ONE_LAW, descend, resampled_minima, take_points
from dma_lab.scaling.optimum import compute_multiplier, compute_optimal

LAW = ParametricFit(E=1.7, A=400.0, B=2000.0, alpha=0.34, beta=0.37, objective=0.0)
LADDER = Cost(np.log([1e6, 1e7, 1e8]), np.log([6 * 3e6, 6 * 1.5e7, 6 * 1.2e8]))
"""Small models cost three times what their parameters do, large ones little more."""


def grid(shape=6, sizes=(5e7, 5e9)):
    params = np.repeat(np.geomspace(*sizes, shape), shape)
    return params, np.tile(np.geomspace(1e9, 1e11, shape), shape)


def test_an_interval_stays_open_for_what_resamples_leave_unknown():
    numbers = np.arange(1.0, 101)
    assert percentile_interval(numbers) == (3, 98)
    assert percentile_interval([*numbers[:97], *[np.inf] * 3]) == (3, np.inf)
    assert percentile_interval([*numbers[:97], *[np.nan] * 3]) == (-np.inf, np.inf)
    assert percentile_interval([*numbers[:98], *[np.nan] * 2]) == (1, 98)


def test_a_cost_meets_its_runs_and_goes_on_as_six_per_parameter_and_a_rest_that_grows_as_the_width():
    runs = np.array([1e6, 1e7, 1e7, 1e8]), np.array([1e9, 2e9, 4e9, 8e9])
    flops = runs[1] * LADDER.flops_per_token(runs[0])
    cost = Cost.of_runs(*runs, flops)
    assert cost.flops_per_token([1e6, 1e7, 1e8]) == pytest.approx([1.8e7, 9e7, 7.2e8])
    assert cost.flops_per_token(np.sqrt([1e6 * 1e7, 1e7 * 1e8])) == pytest.approx(np.sqrt([1.8e7 * 9e7, 9e7 * 7.2e8]))
    # 12 and 1.2 FLOP per parameter at the ends are no parameters'.
    assert cost.flops_per_token([1e4, 1e10]) == pytest.approx([6e4 + 1.2e7 / 10, 6e10 + 1.2e8 * 10], rel=0.01)


@pytest.mark.parametrize(("name", "within"), [("mha", 0.06), ("mla", 0.06), ("swa", 0.06), ("dma", 0.06), ("nsa", 0.1)])
def test_beyond_the_sizes_run_a_cost_is_near_what_such_models_execute(name, within):
    """Sizes of ``sweep=study``, and models of less than half the smallest and of 20 times the largest."""
    options = {"window": 64} if name in ("swa", "dma", "nsa") else {}
    run, beyond = (
        np.array([size_and_cost(name, options, *shape) for shape in shapes]).T
        for shapes in (((2, 24, 2), (3, 32, 2), (3, 48, 2), (3, 64, 2)), ((2, 16, 2), (4, 96, 4), (4, 256, 4)))
    )
    found = Cost.of_runs(run[0], np.ones(4), run[1]).flops_per_token(beyond[0])
    assert found == pytest.approx(beyond[1], rel=within)


def size_and_cost(name, options, layers, width, heads) -> tuple[int, float]:
    """Non-embedding parameters, and executed training FLOP per token at a context of 256, by its layers' formulas."""
    shape = ModelShape(
        n_layers=layers, d_model=width, n_heads=heads, n_kv_heads=heads // 2, head_dim=width // heads, d_ff=3 * width,
        vocab_size=512, max_seq_len=256,
    )  # fmt: skip
    with torch.device("meta"):
        model = Transformer(shape, name, options)
    return count_parameters(model).non_embedding, training_flops_per_sequence(model, 256).executed / 256


def test_no_size_is_the_best_for_being_the_largest_run():
    """Where what a parameter costs no longer fell from there on, it was the best of a hundredfold of budgets."""
    sizes = np.array([14e3, 37e3, 83e3, 148e3])
    cost = Cost.of_runs(sizes, np.ones(4), 6 * sizes + 25 * np.sqrt(148e3 * sizes))
    best = np.array([compute_optimal(LAW, flops, cost).params for flops in np.geomspace(1e11, 1e17, 121)])
    largest = np.unique(best.round(), return_counts=True)[1].max()
    assert largest <= 2


@pytest.mark.parametrize("flops", [1e13, 1e15, 3e16, 1e17, 1e18, 1e21])
def test_the_optimum_is_the_lowest_of_all_sizes_that_the_compute_pays_for(flops):
    """At 1e15 and 3e16 it lies where FLOP per token bend."""
    found = compute_optimal(LAW, flops, LADDER)
    params = np.geomspace(1e3, 1e13, 200_001)
    losses = LAW.predict(params, flops / LADDER.flops_per_token(params))
    assert found.params == pytest.approx(params[losses.argmin()], rel=2e-4)
    assert found.tokens * LADDER.flops_per_token(found.params) == pytest.approx(flops)
    assert found.loss == pytest.approx(losses.min(), rel=1e-9)


@pytest.mark.parametrize("changed", [{"alpha": 0.0}, {"beta": -0.1}, {"A": np.inf}])
def test_a_law_that_does_not_fall_has_no_optimum(changed):
    found = compute_optimal(dataclasses.replace(LAW, **changed), 1e20)
    assert np.isnan([found.params, found.tokens, found.loss]).all()


@pytest.mark.parametrize("flops", [1e17, 1e22])
def test_the_multiplier_is_what_a_law_of_the_same_exponents_gives_in_closed_form(flops):
    """Under 6 N D = C the least loss is E + G C^-g with g = alpha beta / (alpha + beta), and G scales as A and B do."""
    g = LAW.alpha * LAW.beta / (LAW.alpha + LAW.beta)
    worse = dataclasses.replace(LAW, A=1.1 * LAW.A, B=1.1 * LAW.B)
    assert compute_multiplier(worse, LAW, flops).multiplier == pytest.approx(1.1 ** (1 / g), rel=1e-6)
    assert compute_multiplier(LAW, worse, flops).multiplier == pytest.approx(1.1 ** (-1 / g), rel=1e-6)
    dearer = Cost(LADDER.log_params, LADDER.log_flops_per_token + np.log(1.25))
    assert compute_multiplier(LAW, LAW, flops, dearer, LADDER).multiplier == pytest.approx(1.25, rel=1e-6)


def test_a_loss_below_the_floor_of_a_law_is_never_reached_and_that_is_said():
    other = dataclasses.replace(LAW, samples=np.tile(LAW.row, (100, 1)))
    E = np.full(100, 1.7)
    E[:40] = 2.6
    law = dataclasses.replace(LAW, samples=np.column_stack([E, np.tile(LAW.row[1:], (100, 1))]))
    found = compute_multiplier(law, other, 1e22)
    assert (found.multiplier, found.unreached) == (pytest.approx(1), 0.4)
    assert found.interval == (pytest.approx(1), np.inf)
    assert found.text == "1 × [1, no upper bound: never in 40% of resamples]"
    law, other = (dataclasses.replace(fit, samples=fit.samples[:39]) for fit in (law, other))
    never = compute_multiplier(dataclasses.replace(law, E=2.6), other, 1e22)
    assert never.text == "never (never in 100% of resamples)"


@pytest.mark.parametrize("samples", [None, np.tile(LAW.row, (4, 1))])
def test_laws_of_different_numbers_of_resamples_are_not_paired(samples):
    law, other = dataclasses.replace(LAW, samples=samples), dataclasses.replace(LAW, samples=np.tile(LAW.row, (3, 1)))
    with pytest.raises(ValueError, match="different numbers of resamples"):
        compute_multiplier(law, other, 1e20)


def fit_from(start, points, seed):
    """As ``fit_parametric``, from the truth in place of the grid of starts, which is most of the time."""
    minimum = descend(
        np.array([start.alpha, start.beta, *np.log([start.E, start.A, start.B])]), [points], ONE_LAW, 1e-3
    )
    fit = ParametricFit(*natural(minimum[1]), objective=minimum[0])
    return with_intervals(fit, resampled_minima(minimum[1], [points], ONE_LAW, 1e-3, 60, seed))


@pytest.mark.slow
def test_intervals_cover_the_truth_at_their_rate_and_pairing_narrows_those_of_multipliers():
    """Studies of two backends whose runs share most of their noise, as runs on the same data do."""
    params, tokens = grid(5)
    better = dataclasses.replace(LAW, B=0.95 * LAW.B)
    truth, best = compute_multiplier(better, LAW, 1e22).multiplier, compute_optimal(LAW, 1e22)
    held, narrower = np.zeros(3), []
    for study in range(24):
        generator = np.random.default_rng(study)
        shared, *own = np.array([[0.002], [0.0002], [0.0002]]) * generator.normal(size=(3, len(params)))
        fit, ours, apart = (
            fit_from(law, take_points(params, tokens, law.predict(params, tokens) * np.exp(shared + noise)), seed)
            for law, noise, seed in ((LAW, own[0], 0), (better, own[1], 0), (better, own[1], 1))
        )
        paired, optimum = compute_multiplier(ours, fit, 1e22), compute_optimal(fit, 1e22)
        found = (paired.interval, truth), (optimum.params_interval, best.params), (optimum.loss_interval, best.loss)
        held += [low <= true <= high for (low, high), true in found]
        intervals = paired.interval, compute_multiplier(apart, fit, 1e22).interval
        narrower.append(np.divide(*(np.log(high / low) for low, high in intervals)))
    # Of 24 intervals at 95 % 19 or fewer hold by chance in 0.6 % of cases.
    assert (held >= 20).all(), held
    assert np.median(narrower) < 0.5
