"""The best learning rate from made-up curves: recovered, its interval held to its coverage, edges named."""

import numpy as np
import pytest

from dma_lab.scaling.tuning import best_rate, pool_noise

RATES = 0.0012 * 1.5 ** np.arange(7)
TRUE = 0.005


def curve(rates, best=TRUE):
    return 3.0 + 0.04 * np.log(rates / best) ** 2


def test_the_lowest_point_of_a_curve_without_noise_is_found():
    found = best_rate(RATES, curve(RATES), None)
    assert found.rate == pytest.approx(TRUE)
    assert (found.interval, found.edge) == (None, None)


def test_the_interval_holds_the_optimum_in_95_of_100_sweeps():
    """Of five backends at two rungs, two seeds each, whose noise is pooled; flat curves and steep ones."""
    draw = np.random.default_rng(0)
    held = total = level = 0
    rates = np.repeat(RATES, 2)
    for _ in range(400):
        losses = curve(rates) + 0.01 * draw.standard_normal((10, len(rates)))
        noise = pool_noise([pair for sweep in losses for pair in sweep.reshape(-1, 2)])
        assert noise.freedom == 70
        for sweep in losses[:3]:
            found = best_rate(rates, sweep, noise)
            assert found.edge is None
            level += abs(found.loss(TRUE) - curve(TRUE)) <= found.half_width(TRUE)
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
    assert best_rate(RATES, [3.0, 3.3, 3.3, 2.99, 3.3, 3.3, 3.0], None).edge == "no parabola"


def test_noise_is_pooled_over_cells_and_one_seed_tells_nothing():
    noise = pool_noise([[1.0, 3.0], [5.0, 5.0, 8.0], [7.0]])
    assert (noise.variance, noise.freedom) == (pytest.approx((2 + 6) / 3), 3)
    assert pool_noise([[1.0], [2.0]]) is None


def test_noise_that_hides_the_curve_leaves_the_optimum_open():
    noise = pool_noise([[3.0, 4.0]] * 5)
    assert best_rate(RATES, curve(RATES), noise).interval is None
