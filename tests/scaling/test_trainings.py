"""Laws of least squares over trainings: against other libraries, covariances written out, and known noise."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import curve_fit, minimize
from scipy.stats import t as student

from dma_lab.messages import UserError
from dma_lab.scaling.fit import ParametricFit
from dma_lab.scaling.frontier import law_loss
from dma_lab.scaling.noise_by_size import NoisePower
from dma_lab.scaling.objective import take_points
from dma_lab.scaling.projection import Trainings
from dma_lab.scaling.shared_floor import share_floor
from dma_lab.scaling.trainings import fit_trainings
from tests.scaling.studies import STUDY, make_study

LAW = ParametricFit(E=1.7, A=400.0, B=2000.0, alpha=0.34, beta=0.37, objective=0.0)


def runs(seeds=1, of_training=0.0, of_branch=0.003, branches=4, seed=0, law=LAW):
    """Six sizes; every training branches into budgets."""
    params = np.repeat(np.geomspace(5e7, 5e9, 6), branches * seeds)
    tokens = np.tile(np.geomspace(1e9, 1e11, branches), 6 * seeds)
    training = np.repeat(np.arange(6 * seeds), branches)
    generator = np.random.default_rng(seed)
    noise = of_training * generator.normal(size=6 * seeds)[training] + of_branch * generator.normal(size=len(params))
    return params, tokens, law.predict(params, tokens) + noise, training


def law(points, E, A, B, alpha, beta):
    params, tokens = points
    return E + A * (params / 1e9) ** -alpha + B * (tokens / 1e10) ** -beta


def test_without_branches_law_and_intervals_are_those_of_scipys_least_squares():
    """At this noise the law is all but linear, where Student's t by the covariance is right."""
    params, tokens, loss, _ = runs(of_branch=0.001)
    fit = fit_trainings(params, tokens, loss, np.arange(len(loss)))
    start = 1.7, 400 * 1e9**-0.34, 2000 * 1e10**-0.37, 0.34, 0.37
    best, covariance = curve_fit(law, (params, tokens), loss, start)
    assert (fit.E, fit.alpha, fit.beta) == pytest.approx((best[0], best[3], best[4]), rel=1e-4)
    assert (1e9**-fit.alpha * fit.A, 1e10**-fit.beta * fit.B) == pytest.approx(tuple(best[1:3]), rel=1e-4)
    assert fit.objective == pytest.approx(np.square(law((params, tokens), *best) - loss).sum(), rel=1e-6)
    reach = student.ppf(0.975, len(loss) - 5) * np.sqrt(np.diag(covariance))
    for name, index in (("E", 0), ("alpha", 3), ("beta", 4)):
        low, high = fit.intervals[name]
        assert (high - low) / (2 * reach[index]) == pytest.approx(1, abs=0.08), name
        assert (low + high) / 2 == pytest.approx(best[index], abs=0.25 * reach[index]), name
    assert np.median(fit.noise[:, 1]) == pytest.approx(0.001, rel=0.4)
    assert not fit.noise[:, 0].any()


def test_the_law_of_branches_is_that_of_their_covariance_written_out():
    # Three seeds, of which some lack a budget: only seeds of the same budgets are one row.
    kept = np.delete(np.arange(72), [5, 30, 31])
    params, tokens, loss, training = (values[kept] for values in runs(seeds=3, of_training=0.02))
    runs_of = Trainings(take_points(params, tokens, loss), training)
    log_ratio, power, more = 5.0, -0.7, 0.4
    shared = float(runs_of.shared_of(log_ratio))
    relative = params / np.exp(np.log(params).mean())
    of_training = np.sqrt(shared) * relative ** (power / 2)
    own = np.diag(relative ** (power + more))
    covariance = own + np.outer(of_training, of_training) * (training[:, None] == training)
    exponents = np.log([0.3, 0.4])
    normal = runs_of.normal(*(np.array([value]) for value in (*exponents, log_ratio, power, more)))
    (coefficients,), (left,) = normal.best
    A, B = coefficients[1:] * np.exp(normal.scale[0])
    columns = np.column_stack((np.ones(len(loss)), params**-0.3, tokens**-0.4))
    inverse = np.linalg.inv(covariance)
    expected = np.linalg.solve(columns.T @ inverse @ columns, columns.T @ inverse @ loss)
    assert (coefficients[0], A, B) == pytest.approx(tuple(expected), rel=1e-6)
    off = loss - columns @ expected
    assert left == pytest.approx(off @ inverse @ off, rel=1e-6)
    assert normal.log_weights[0] == pytest.approx(-np.linalg.slogdet(covariance)[1])
    other = np.array([[log_ratio, power, more], [0.0, 0.0, 0.0]])
    assert runs_of.matrices(exponents, other)[0] == pytest.approx(normal.matrix[0])
    plain = runs_of.normal(*np.array([*exponents, 0, 0, 0])[:, None])
    assert runs_of.matrices(exponents, other)[1] == pytest.approx(plain.matrix[0])


def test_no_simplex_over_all_five_parameters_ends_lower():
    """On noisy sets, against the sum of squares written out."""
    for seed in range(3):
        params, tokens, loss, training = runs(of_branch=0.03, branches=3, seed=seed)
        fit = fit_trainings(params, tokens, loss, np.arange(len(training)))
        squares = lambda at: np.square(law((params, tokens), *at) - loss).sum() * 1e4  # noqa: B023, E731
        found = (fit.E, fit.A * 1e9**-fit.alpha, fit.B * 1e10**-fit.beta, fit.alpha, fit.beta)
        for start in (found, (1.7, 0.35, 0.4, 0.34, 0.37)):
            other = minimize(squares, start, method="Nelder-Mead", options={"maxfev": 10_000, "adaptive": True})
            assert squares(found) <= other.fun * (1 + 1e-6)


def test_the_noise_that_branches_share_is_found_and_counts():
    params, tokens, loss, training = runs(seeds=4, of_training=0.02, of_branch=0.004)
    fit = fit_trainings(params, tokens, loss, training)
    assert np.median(fit.noise, axis=0) == pytest.approx((0.02, 0.004), rel=0.3)
    assert fit.trainings == 24
    width = np.diff(fit.intervals["alpha"])
    # One training for every four points that look like four.
    apart = np.diff(fit_trainings(params, tokens, loss, np.arange(len(loss))).intervals["alpha"])
    assert width > 1.4 * apart


def test_a_training_to_come_varies_by_law_and_noise():
    fit = fit_trainings(*runs(seeds=4, of_training=0.02, of_branch=0.004))
    low, high = fit.predicted_interval(1e9, 1e10)
    assert high - low == pytest.approx(2 * 1.96 * np.hypot(0.02, 0.004), rel=0.35)
    drawn = fit.predicted([1e9, 1e9, 1e9], [1e9, 1e10, 1e10], [0, 0, 1])
    spread = (drawn - drawn.mean(axis=0)).std(axis=0)
    together, apart = ((drawn[:, 0] - drawn[:, i]).std() for i in (1, 2))
    assert together < 0.4 * apart, "branches of one training have its luck"
    assert spread == pytest.approx([np.hypot(0.02, 0.004)] * 3, rel=0.4)


def test_where_the_end_of_the_loss_does_not_show_it_is_drawn_and_the_rest_fitted_to_it():
    """Loss falls a little faster than any law with E above 0, as far as these runs go."""
    params, tokens, loss, _ = runs(of_branch=0.02, law=replace(LAW, E=-0.1, A=90.0, alpha=0.2))
    fit = fit_trainings(params, tokens, loss, np.arange(len(loss)))
    low, high = fit.intervals["E"]
    assert 0 < low < fit.E == np.median(fit.samples[:, 0]) < high
    start = 90 * 1e9**-0.2, 2000 * 1e10**-0.37, 0.2, 0.37
    best, _ = curve_fit(lambda points, *rest: law(points, fit.E, *rest), (params, tokens), loss, start)
    assert (fit.alpha, fit.beta) == pytest.approx(tuple(best[2:]), rel=1e-4)
    assert (1e9**-fit.alpha * fit.A, 1e10**-fit.beta * fit.B) == pytest.approx(tuple(best[:2]), rel=1e-4)
    assert fit.objective == pytest.approx(np.square(law((params, tokens), fit.E, *best) - loss).sum(), rel=1e-6)
    low, high = fit.predicted_interval(params.max() * 3, tokens.max() * 3)
    assert low < fit.predict(params.max() * 3, tokens.max() * 3) < high
    free, _ = curve_fit(law, (params, tokens), loss, (0.0, *start))
    assert free[0] < 0


def test_where_runs_fix_e_and_a_only_together_e_is_drawn_too():
    """Over a tenfold of sizes a small exponent hardly bends: A falls as E rises, and no loss shows it."""
    params = np.repeat([14e3, 37e3, 83e3, 148e3], 6)
    tokens = np.tile(np.repeat([0.5, 1, 2], 2), 4) * 2.7e10 / params
    truth = ParametricFit(E=0.9, A=1.1 * 83e3**0.12, B=1.1 * 2e5**0.33, alpha=0.12, beta=0.33, objective=0.0)
    loss = truth.predict(params, tokens) + 0.02 * np.random.default_rng(4).normal(size=24)
    start = 0.9, 1.1 * (83e3 / 1e9) ** 0.12, 1.1 * (2e5 / 1e10) ** 0.33, 0.12, 0.33
    (free, *_), _ = curve_fit(law, (params, tokens), loss, start, maxfev=20_000)
    assert 0 < free < 0.4, "inside, and far from the truth"
    fit = fit_trainings(params, tokens, loss, np.arange(24))
    low, high = fit.intervals["E"]
    assert 0 < low < fit.E == np.median(fit.samples[:, 0]) < high < loss.min()
    assert low < truth.E < high
    below, above = fit.predicted_interval(1e6, 1e7)
    assert below < truth.predict(1e6, 1e7) < above
    assert above - below < 0.3, "E and A are open, what they come to is not"


def test_runs_closest_to_a_logarithm_of_size_have_the_law_of_an_e_that_a_loss_can_have():
    """By luck the closest exponent is 0, of an E far below it: refused, laws left were those whose E looked large."""
    params = np.repeat([14e3, 37e3, 83e3, 148e3], 6)
    tokens = np.tile(np.repeat([0.5, 1, 2], 2), 4) * 2.7e10 / params
    truth = ParametricFit(E=0.9, A=1.1 * 83e3**0.12, B=1.1 * 2e5**0.33, alpha=0.12, beta=0.33, objective=0.0)
    loss = truth.predict(params, tokens) + 0.02 * np.random.default_rng(8).normal(size=24)
    fit = fit_trainings(params, tokens, loss, np.arange(24))
    for name in ("E", "A", "alpha", "beta"):
        assert fit.intervals[name][0] < getattr(truth, name) < fit.intervals[name][1], name
    assert fit.E == np.median(fit.samples[:, 0])
    start = 1.1 * (83e3 / 1e9) ** 0.12, 1.1 * (2e5 / 1e10) ** 0.33, 0.12, 0.33
    best, _ = curve_fit(lambda points, *rest: law(points, fit.E, *rest), (params, tokens), loss, start)
    assert (fit.alpha, fit.beta) == pytest.approx(tuple(best[2:]), rel=1e-4)


def test_three_trainings_and_runs_that_follow_no_power_are_refused():
    params, tokens, loss, _ = runs()
    kept = params < 6e8
    size = np.searchsorted(np.unique(params), params)
    with pytest.raises(UserError, match="3 trainings do not determine the noise"):
        fit_trainings(params[kept], tokens[kept], loss[kept], size[kept])
    with pytest.raises(UserError, match=r"follow no power|at its bound|hardly any law|does not fall"):
        fit_trainings(params, tokens, np.random.default_rng(0).uniform(3, 4, len(loss)), size)


def test_draws_are_seeded():
    one, again, other = (fit_trainings(*runs(), seed=seed) for seed in (0, 0, 1))
    assert (one.samples == again.samples).all()
    assert (one.samples != other.samples).any()
    assert one.row == pytest.approx(other.row, rel=0.05)


def test_a_shared_floor_is_where_both_laws_allow_it_and_narrows_both():
    better = ParametricFit(E=1.7, A=360.0, B=1800.0, alpha=0.34, beta=0.37, objective=0.0)
    quiet = {"seeds": 2, "of_branch": 0.001}  # where draws are nearly normal
    one, two = fit_trainings(*runs(seed=1, **quiet)), fit_trainings(*runs(seed=2, law=better, **quiet))
    ours, theirs = share_floor(one, two)
    assert (ours.samples[:, 0] == theirs.samples[:, 0]).all()
    # The product of two nearly normal densities, weighted by their precisions.
    means, variances = (np.array([function(fit.samples[:, 0]) for fit in (one, two)]) for function in (np.mean, np.var))
    expected = (means / variances).sum() / (1 / variances).sum()
    assert ours.samples[:, 0].mean() == pytest.approx(expected, abs=0.2 * np.sqrt(variances.min()))
    assert ours.samples[:, 0].std() == pytest.approx((1 / variances).sum() ** -0.5, rel=0.15)
    # What goes with E within a law still does.
    before, after = (np.polyfit(fit.samples[:, 0], fit.samples[:, 3], 1)[0] for fit in (one, ours))
    assert after == pytest.approx(before, rel=0.15)
    far = ParametricFit(E=2.5, A=400.0, B=2000.0, alpha=0.34, beta=0.37, objective=0.0)
    with pytest.raises(UserError, match="no E fits both laws"):
        share_floor(one, fit_trainings(*runs(law=far)))


def test_a_shared_floor_leaves_the_loss_at_the_runs_as_sure_as_it_was():
    """A draw that has another's E, be it the next of two thousand, and all else its own has another loss everywhere."""
    study = make_study(1, 5, STUDY, noise=(0.002, 0.002))
    params, tokens, *_ = study.points(0)
    laws = [fit_trainings(*study.points(backend)) for backend in (1, 0)]
    for before, after in zip(laws, share_floor(*laws), strict=True):
        of_before, of_after = (law_loss(of.samples[:, None], np.log(params), np.log(tokens)) for of in (before, after))
        assert np.all(of_after.std(axis=0) < 1.1 * of_before.std(axis=0))
        assert np.all(abs(of_after.mean(axis=0) - of_before.mean(axis=0)) < 0.6 * of_before.std(axis=0))


def test_noise_that_falls_with_size_is_found_where_seeds_tell_it_and_weighs_the_runs():
    """Against least squares weighted by the true noise."""
    sizes, tokens = np.geomspace(1e8, 1e10, 6), np.geomspace(1e10, 1e12, 4)
    params, data, _ = (array.ravel() for array in np.meshgrid(sizes, tokens, np.arange(4), indexing="ij"))
    noise = 0.05 * (params / 1e8) ** -0.75
    loss = law((params, data), 1.7, 400, 2000, 0.34, 0.37) + noise * np.random.default_rng(3).normal(size=len(params))
    fit = fit_trainings(params, data, loss, np.arange(len(loss)))
    low, high = np.quantile(fit.noise_power[:, 0], (0.025, 0.975))
    assert low < -1.5 < high < -1.2, "the variance's power"
    assert fit.noise_size == pytest.approx(1e9)
    middle = 0.05 * 10**-0.75
    assert np.median(fit.noise[:, 1]) == pytest.approx(middle, rel=0.15)
    start = 1.7, 400, 2000, 0.34, 0.37
    best, covariance = curve_fit(law, (params, data), loss, start, sigma=noise)
    for name, index in (("E", 0), ("alpha", 3), ("beta", 4)):
        reach = np.sqrt(covariance[index, index])
        assert getattr(fit, name) == pytest.approx(best[index], abs=0.4 * reach), name
        assert np.ptp(fit.intervals[name]) == pytest.approx(2 * 1.98 * reach, rel=0.2), name
    small, large = (np.ptp(fit.predicted_interval(size, 1e11)) for size in (1e8, 1e10))
    assert small == pytest.approx(3.92 * 0.05, rel=0.25)
    assert large < 0.1 * small


def test_a_trainings_noise_falls_with_size_and_its_branches_own_by_another_power():
    """Taken to be alike, the more numerous branches, whose noise of documents does not fall, said that neither does."""
    sizes, tokens = np.geomspace(1e8, 1e10, 6), np.geomspace(1e10, 1e12, 3)
    params, training, data = np.repeat(sizes, 30), np.repeat(np.arange(60), 3), np.tile(tokens, 60)
    generator = np.random.default_rng(2)
    luck = 0.05 * (params / 1e8) ** -0.5 * generator.normal(size=60)[training]
    loss = law((params, data), 1.7, 400, 2000, 0.34, 0.37) + luck + 0.01 * generator.normal(size=len(luck))
    fit = fit_trainings(params, data, loss, training)
    of_training, of_branch = np.median(fit.noise_power, axis=0)
    assert of_training == pytest.approx(-1.0, abs=0.3)
    assert of_branch == pytest.approx(0.0, abs=0.2)
    known = fit_trainings(params, data, loss, training, elsewhere=NoisePower(-2.0, 0.01))
    assert np.median(known.noise_power, axis=0) == pytest.approx((-2.0, 0.0), abs=0.2)
    small, large = (np.ptp(fit.predicted_interval(size, 1e11)) for size in (1e8, 1e10))
    assert small / large > 2, "at 1e10 branches' own noise is twice the training's"


def test_without_seeds_noise_is_taken_to_be_alike():
    params, tokens, loss, training = runs()
    fit = fit_trainings(params, tokens, loss, training)
    assert not fit.noise_power.any()
