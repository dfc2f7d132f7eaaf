"""The best learning rate from made-up curves: recovered, its interval held to its coverage, edges named."""

import numpy as np
import pytest

from dma_lab.scaling.tuning import best_multiplier, best_rate, pool_noise

RATES = 0.0012 * 1.5 ** np.arange(7)
TRUE = 0.005


def curve(rates, best=TRUE, cubic=0.0):
    return 3.0 + 0.04 * np.log(rates / best) ** 2 + cubic * np.log(rates / best) ** 3


def test_the_lowest_point_of_a_curve_without_noise_is_found():
    found = best_rate(RATES, curve(RATES), None)
    assert found.rate == pytest.approx(TRUE)
    assert (found.interval, found.edge) == (None, None)


@pytest.mark.parametrize("cubic", [0.0, 0.012])
def test_the_interval_holds_the_optimum_in_95_of_100_sweeps(cubic):
    """Of five backends at two rungs, two seeds each, whose noise is pooled. With a cubic part losses rise three times
    as fast to the one side as to the other, and a parabola would hold it in 14 of 100.
    """
    draw = np.random.default_rng(0)
    held = total = level = 0
    rates = np.repeat(RATES, 2)
    for _ in range(400):
        losses = curve(rates, cubic=cubic) + 0.01 * draw.standard_normal((10, len(rates)))
        noise = pool_noise([pair for sweep in losses for pair in sweep.reshape(-1, 2)])
        assert noise.freedom == 70
        for sweep in losses[:3]:
            found = best_rate(rates, sweep, noise)
            assert found.edge is None
            level += abs(found.loss(TRUE) - 3.0) <= found.half_width(TRUE)
            if found.interval is None:
                held, total = held + 1, total + 1
                continue
            held, total = held + (found.interval[0] <= TRUE <= found.interval[1]), total + 1
    assert 0.93 <= held / total <= 0.97
    assert 0.93 <= level / total <= 0.97


def test_an_optimum_at_or_beyond_the_edge_is_said():
    low, high = (best_rate(RATES, curve(RATES, best), None) for best in (0.0008, 0.02))
    assert (low.edge, low.rate) == ("lowest", pytest.approx(RATES[0]))
    assert (high.edge, high.rate) == ("highest", pytest.approx(RATES[-1]))
    assert best_rate(RATES, [3.0, 3.3, 3.3, 2.99, 3.3, 3.3, 3.0], None).edge == "no minimum"


def test_noise_is_pooled_over_cells_and_one_seed_tells_nothing():
    noise = pool_noise([[1.0, 3.0], [5.0, 5.0, 8.0], [7.0]])
    assert (noise.variance, noise.freedom) == (pytest.approx((2 + 6) / 3), 3)
    assert pool_noise([[1.0], [2.0]]) is None


def test_noise_that_hides_the_curve_leaves_the_optimum_open():
    noise = pool_noise([[3.0, 4.0]] * 5)
    assert best_rate(RATES, curve(RATES), noise).interval is None


def test_a_curve_that_no_cubic_goes_through_is_fitted_about_its_best():
    """Losses that stand at the loss of a model that knows token frequencies alone, at rates too low and too high."""
    rates = np.repeat(0.0012 * 1.5 ** np.arange(11), 2)
    draw = np.random.default_rng(1)
    losses = np.minimum(curve(rates), 3.04) + 0.001 * draw.standard_normal(len(rates))
    found = best_rate(rates, losses, pool_noise(losses.reshape(-1, 2)))
    assert len(found.fitted) == 6, "of 11"
    assert found.fitted[0] < TRUE < found.fitted[-1]
    assert found.interval[0] < TRUE < found.interval[1]


def test_rungs_together_have_the_multiplier_of_least_loss_summed():
    """By hand: 0.04 (x - 0)² and 0.01 (x - 0.5)² have their lowest sum at x = 0.1."""
    steep = best_rate(RATES, 3.0 + 0.04 * np.log(RATES / 0.004) ** 2, None)
    flat = best_rate(3 * RATES, 2.0 + 0.01 * (np.log(3 * RATES / 0.006) - 0.5) ** 2, None)
    multiplier, interval = best_multiplier([(steep, 0.004), (flat, 0.006)])
    assert np.log(multiplier) == pytest.approx(0.1, abs=1e-6)
    assert interval is None


def test_the_interval_of_the_multiplier_holds_it_in_95_of_100_pairs_of_rungs():
    draw = np.random.default_rng(2)
    held = []
    rates = np.repeat(RATES, 2)
    for _ in range(300):
        found = []
        for recipe, sharpness, noise in ((0.006, 0.04, 0.01), (0.009, 0.02, 0.004)):
            true = recipe / 1.6
            losses = 3.0 + sharpness * np.log(rates / true) ** 2 + noise * draw.standard_normal(len(rates))
            found.append((best_rate(rates, losses, pool_noise(losses.reshape(-1, 2))), recipe))
        if any(best.edge for best, _ in found):
            continue
        _, interval = best_multiplier(found)
        held.append(interval is None or interval[0] <= 1 / 1.6 <= interval[1])
    assert len(held) > 290
    assert 0.93 <= np.mean(held) <= 0.985, "sums of t are a little wide"
