"""IsoFLOP parabolas and their power laws against parabolas that are known, and intervals at their stated rate."""

import numpy as np
import pytest

from dma_lab.messages import UserError
from dma_lab.scaling.fit import ParametricFit
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


CHINCHILLA = ParametricFit(E=1.8172, A=477.8, B=2143.0, alpha=0.3473, beta=0.3672, objective=0.0)
SKEWED = ParametricFit(E=1.7, A=60.0, B=8000.0, alpha=0.25, beta=0.45, objective=0.0)
"""Too large loses far more than too small: a parabola through all sizes has its minimum elsewhere."""


def wide_study(law, noise, seed):
    """Nine budgets, twelve sizes each from an eighth to eight times the best: the shape of published grids."""
    generator, parabolas = np.random.default_rng(seed), []
    for flops in np.geomspace(6e18, 3e21, 9):
        sizes = law.optimal(flops)[0] * np.geomspace(1 / 8, 8, 12)
        loss = law.predict(sizes, flops / 6 / sizes) + noise * generator.normal(size=12)
        try:
            parabolas.append(fit_parabola(np.full(12, flops), sizes, flops / 6 / sizes, loss))
        except UserError:
            continue
    return fit_isoflop(parabolas, bootstrap=200, seed=seed)


def rates(law, noise, studies):
    """How often intervals of N* and of the exponent hold the truth, and how often they are finite."""
    sizes, exponents = [], []
    for seed in range(studies):
        fit = wide_study(law, noise, seed)
        for parabola in fit.parabolas:
            low, high = parabola.params_interval
            sizes.append((low <= law.optimal(parabola.flops)[0] <= high, np.isfinite([low, high]).all()))
        low, high = fit.params.exponent_interval
        exponents.append((low <= law.beta / (law.alpha + law.beta) <= high, np.isfinite([low, high]).all()))
    return np.mean(sizes, axis=0), np.mean(exponents, axis=0)


@pytest.mark.parametrize("law", [CHINCHILLA, SKEWED], ids=["chinchilla", "skewed"])
def test_wide_grids_of_a_law_give_finite_intervals_that_hold_its_optimum(law):
    (held, finite), (exponents_held, exponents_finite) = rates(law, 0.01, studies=30)
    # 270 minima: 95 % give or take three standard deviations, and what is left of the parabola's own error.
    assert held >= 0.88
    assert finite >= 0.9
    # Of 30 at 95 % 25 or fewer hold by chance in 1.5 % of cases.
    assert exponents_held >= 26 / 30
    assert exponents_finite == 1


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.01, 0.03, 0.05])
def test_intervals_of_wide_grids_hold_a_laws_optimum_in_90_to_98_of_100_studies(noise):
    (held, _), (exponents_held, exponents_finite) = rates(CHINCHILLA, noise, studies=300)
    assert 0.90 <= held <= 0.98
    assert 0.90 <= exponents_held <= 0.98
    assert exponents_finite == 1


def test_what_lies_far_from_the_minimum_has_no_say_in_it():
    flops, sizes, tokens, loss = run_budget(5e15, 4e6 * np.geomspace(1 / 64, 64, 13))
    whole = fit_parabola(flops, sizes, tokens, loss)
    far = np.abs(np.log(sizes / 4e6)) > np.log(4.01)
    bent = fit_parabola(flops, sizes, tokens, loss + np.where(far, 0.3 * np.log(sizes / 1e6) ** 2, 0))
    assert far.sum() == 8
    assert bent.params == pytest.approx(whole.params) == pytest.approx(4e6)
    assert bent.residuals == pytest.approx(np.zeros(5), abs=1e-9)


def test_the_noise_of_one_budget_is_not_that_of_another_that_can_tell_its_own():
    generator = np.random.default_rng(0)
    sizes = lambda flops: best_size(flops) * np.geomspace(1 / 4, 4, 13)  # noqa: E731
    calm = [fit_parabola(*run_budget(flops, sizes(flops), 0.002, generator)) for flops in BUDGETS[:2]]
    loud = fit_parabola(*run_budget(BUDGETS[2], sizes(BUDGETS[2]), 0.03, generator))
    alone, beside = fit_isoflop(calm, bootstrap=400), fit_isoflop([*calm, loud], bootstrap=400)
    for before, after in zip(alone.parabolas, beside.parabolas, strict=False):
        widths = [np.diff(np.log(parabola.params_interval))[0] for parabola in (before, after)]
        assert widths[1] == pytest.approx(widths[0], rel=0.2)
    assert np.diff(np.log(beside.parabolas[2].params_interval))[0] > 5 * widths[0]


def test_two_budgets_with_minima_near_the_ends_of_their_sizes_still_have_an_exponent():
    generator = np.random.default_rng(1)
    ends = (np.geomspace(0.8, 13, 7), np.geomspace(1 / 13, 1.25, 7))
    runs = [
        run_budget(flops, best_size(flops) * end, 0.004, generator)
        for flops, end in zip(BUDGETS[[0, 3]], ends, strict=True)
    ]
    low, high = fit_isoflop([fit_parabola(*run) for run in runs], bootstrap=400).params.exponent_interval
    assert low < 0.48 < high
    assert high - low < 1


@pytest.mark.parametrize(
    ("flops", "loss", "says"),
    [
        ([1e15, 1e15, 1.2e15], [3.1, 3.0, 3.1], r"1e.15 to 1.2e.15 FLOP do not share one budget"),
        ([1e15, 1e15, 1e15], [3.1, np.nan, 3.1], "loss of run 1 is nan"),
    ],
)
def test_runs_of_two_budgets_and_losses_that_are_none_make_no_parabola(flops, loss, says):
    sizes = SIZES[:3]
    with pytest.raises(UserError, match=says):
        fit_parabola(flops, sizes, 1e15 / 6 / sizes, loss)
    one = fit_parabola(*run_budget(5e15))
    with pytest.raises(UserError, match="2 isoFLOP minima give no power law; it needs those of at least 2 budgets"):
        fit_isoflop([one, one])


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
