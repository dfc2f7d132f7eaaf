"""IsoFLOP parabolas and their power laws against parabolas that are known, and intervals at their stated rate."""

import numpy as np
import pytest

from dma_lab.messages import UserError
from dma_lab.scaling.isoflop import budgets, fit_isoflop, fit_parabola

SIZES = np.array([1e6, 2e6, 4e6, 8e6, 16e6])
BUDGETS = np.array([1e15, 3e15, 1e16, 3e16])


def best_size(flops):
    return 4e6 * (flops / 5e15) ** 0.48


def run_budget(flops, sizes=SIZES, noise=0.0, generator=None):
    """One run a size at 6 N D = ``flops``; loss in a parabola of minimum 3 at ``best_size``."""
    loss = 3 + 0.05 * np.log(sizes / best_size(flops)) ** 2
    if generator is not None:
        loss = loss + noise * generator.normal(size=len(sizes))
    return np.full(len(sizes), flops), sizes, flops / 6 / sizes, loss


def test_exact_parabolas_give_their_minima_and_the_power_laws_through_them():
    fit = fit_isoflop([fit_parabola(*run_budget(flops)) for flops in BUDGETS], bootstrap=50)
    for parabola, flops in zip(fit.parabolas, BUDGETS, strict=True):
        assert parabola.params == pytest.approx(best_size(flops))
        assert 6 * parabola.params * parabola.tokens == pytest.approx(flops)
        assert parabola.loss == pytest.approx(3)
        assert parabola.predict([1e6, 3e7]) == pytest.approx(3 + 0.05 * np.log([1e6, 3e7] / best_size(flops)) ** 2)
    assert (fit.params.exponent, fit.tokens.exponent) == pytest.approx((0.48, 0.52))
    assert fit.params.at(1e20) == pytest.approx(best_size(1e20))
    assert fit.tokens.at(1e20) == pytest.approx(1e20 / 6 / best_size(1e20))
    assert fit.params.exponent_interval == pytest.approx((0.48, 0.48))


def test_tokens_at_the_minimum_are_what_the_budget_pays_for_at_the_runs_own_flops_a_token():
    flops, sizes, tokens, loss = run_budget(5e15)
    dear = 1 + 2e6 / sizes  # what a token takes beyond 6 N
    parabola = fit_parabola(flops, sizes, tokens / dear, loss)
    assert parabola.params == pytest.approx(4e6)
    assert parabola.tokens == pytest.approx(5e15 / 6 / 4e6 / 1.5)


@pytest.mark.parametrize(
    ("sizes", "loss", "why"),
    [
        ([1e6, 1e6, 4e6], [3.1, 3.12, 3.0], "at 1e.15 FLOP there are 2 sizes; a parabola needs runs of at least 3"),
        ([1e6, 2e6, 4e6], [3.0, 3.1, 3.0], "3 runs of 1e.06 to 4e.06 parameters opens downward"),
        ([1e6, 2e6, 4e6], [3.2, 3.1, 3.05], "lies outside the sizes run, 1e.06 to 4e.06 parameters; run larger"),
        ([1e6, 2e6, 4e6], [3.05, 3.1, 3.2], "lies outside the sizes run, 1e.06 to 4e.06 parameters; run smaller"),
    ],
)
def test_a_budget_without_a_minimum_among_its_sizes_is_refused_with_the_reason(sizes, loss, why):
    sizes = np.array(sizes)
    with pytest.raises(UserError, match=why):
        fit_parabola(np.full(3, 1e15), sizes, 1e15 / 6 / sizes, loss)


def test_one_budget_gives_no_power_law():
    with pytest.raises(UserError, match="1 isoFLOP minima give no power law"):
        fit_isoflop([fit_parabola(*run_budget(5e15))])


def test_runs_within_a_tenth_of_a_budgets_cheapest_belong_to_it():
    found = [list(group) for group in budgets([3.0e15, 1.09e15, 1e15, 1.12e15, 2.9e15])]
    assert found == [[2, 1], [3], [4, 0]]


def test_three_runs_a_budget_leave_no_noise_to_give_intervals_of():
    fit = fit_isoflop([fit_parabola(*run_budget(flops, SIZES[1:4])) for flops in BUDGETS[1:3]], bootstrap=50)
    assert fit.params.exponent == pytest.approx(0.48)
    assert fit.params.exponent_interval is fit.parabolas[0].params_interval is None


@pytest.mark.parametrize(("count", "noise"), [(5, 0.005), (4, 0.002)])
def test_intervals_cover_the_truth_at_their_rate_even_with_a_single_run_beyond_three_a_budget(count, noise):
    studies, held = 300, np.zeros(3)
    for study in range(studies):
        generator = np.random.default_rng(study)
        # Sizes follow the budget, as a sweep planned around the minimum has them.
        runs = [
            run_budget(flops, best_size(flops) * np.geomspace(0.2, 4, count), noise, generator) for flops in BUDGETS[:2]
        ]
        fit = fit_isoflop([fit_parabola(*run) for run in runs], bootstrap=200, seed=study)
        found = (
            (fit.params.exponent_interval, 0.48),
            (fit.tokens.exponent_interval, 0.52),
            (fit.parabolas[0].params_interval, best_size(BUDGETS[0])),
        )
        held += [low <= true <= high for (low, high), true in found]
    # 95 % of 300, give or take three standard deviations, and a few for 200 resamples.
    assert (np.abs(held / studies - 0.95) < 0.045).all(), held / studies
