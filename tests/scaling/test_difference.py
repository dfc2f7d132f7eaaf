"""Noises of two laws weighed for what they differ by: known weights, and two means whose variances are not one."""

import numpy as np
import pytest

from dma_lab.scaling.difference import weigh_for_difference
from dma_lab.scaling.trainings import TrainingsFit


def law_of(means, variances, trainings):
    """Draws of a law that is its E alone, the mean of ``trainings``."""
    samples = np.column_stack((means, np.tile([1.0, 1.0, 0.3, 0.3], (len(means), 1))))
    noise = np.sqrt(np.column_stack((0.9 * variances, 0.1 * variances)))
    return TrainingsFit(
        *(1.0, 1.0, 1.0, 0.3, 0.3, 0.0, {"E": (0.0, 2.0)}),
        samples=samples,
        noise=noise,
        noise_power=np.zeros((len(means), 2)),
        floor_slopes=np.zeros((len(means), 2)),
        floor_deviations=np.ones((len(means), 2)),
        trainings=trainings,
    )


def test_rows_are_drawn_by_the_priors_factor_and_stay_pairs():
    first = np.arange(2000) < 1000
    ours = law_of(np.where(first, 1.0, 2.0), np.where(first, 1.0, 4.0), 2)
    theirs = law_of(np.where(first, 3.0, 4.0), np.where(first, 4.0, 1.0), 8)
    one, two = weigh_for_difference(ours, theirs)
    # (v1 / n1 + v2 / n2) / (v1 v2)
    factors = (1 / 2 + 4 / 8) / 4, (4 / 2 + 1 / 8) / 4
    assert (one.samples[:, 0] == 1).mean() == pytest.approx(factors[0] / sum(factors), abs=0.03)
    assert (two.samples[:, 0] - one.samples[:, 0] == 2).all()
    assert (one.noise[one.samples[:, 0] == 2] ** 2).sum(axis=1) == pytest.approx(4)
    assert (one.intervals, two.trainings) == (ours.intervals, 8)


@pytest.mark.parametrize("spread", [1.0, 2.0])
def test_intervals_of_the_difference_of_two_means_are_no_longer_wider_than_their_name(spread):
    """Four trainings and ten, in 1,000 studies; one standard error is 0.007."""
    generator = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(1000):
        laws = []
        for number, deviation in ((4, 1.0), (10, spread)):
            runs = deviation * generator.normal(size=number)
            variances = (number - 1) * runs.var(ddof=1) / generator.chisquare(number - 1, 1000)
            means = runs.mean() + np.sqrt(variances / number) * generator.normal(size=1000)
            laws.append(law_of(means, variances, number))
        for i, (one, two) in enumerate((laws, weigh_for_difference(*laws))):
            low, high = np.quantile(one.samples[:, 0] - two.samples[:, 0], (0.025, 0.975))
            held[i] += low <= 0 <= high
    before, after = held / 1000
    assert before > 0.965
    assert after == pytest.approx(0.95, abs=0.015)
