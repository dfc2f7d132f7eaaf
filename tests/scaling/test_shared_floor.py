"""Two laws of one E: their prior of it counts once. By hand, on a line of E."""

import numpy as np
import pytest

from dma_lab.scaling.shared_floor import share_floor
from dma_lab.scaling.trainings import TrainingsFit

AXIS = np.linspace(0.0, 2.5, 5001)


def law_of(density, deviation, generator):
    """Draws of a law that is its E, by a density (AXIS,); its standard deviation by the information as a function."""
    floor = AXIS[generator.choice(len(AXIS), 4000, p=density / density.sum())]
    return TrainingsFit(
        *(1.0, 1.0, 1.0, 0.3, 0.3, 0.0, {"E": (0.0, 2.0)}),
        samples=np.column_stack((floor, np.tile([1.0, 1.0, 0.3, 0.3], (len(floor), 1)))),
        noise=np.ones((len(floor), 2)),
        noise_power=np.zeros((len(floor), 2)),
        floor_slopes=np.zeros((len(floor), 2)),
        floor_deviations=np.column_stack((deviation(floor), np.full(len(floor), 0.5))),
    )


@pytest.mark.parametrize("times", [1.0, 5.0])
def test_jeffreys_prior_of_both_is_the_root_of_their_summed_precisions(times):
    """Where runs hardly show E, its precision by either law rises steeply with E; one law may tell of it much less."""
    generator = np.random.default_rng(0)
    deviations = (lambda floor: (3 - floor) ** 2 / 10), (lambda floor: times * (3 - floor) ** 2 / 10)
    likelihoods = [np.exp(-np.square((AXIS - middle) / 0.8) / 2) for middle in (0.9, 0.5)]
    pairs = list(zip(likelihoods, deviations, strict=True))
    ours, theirs = share_floor(*(law_of(likely / spread(AXIS), spread, generator) for likely, spread in pairs))
    assert (ours.samples[:, 0] == theirs.samples[:, 0]).all()
    right = np.prod(likelihoods, axis=0) * np.sqrt(sum(spread(AXIS) ** -2.0 for spread in deviations))
    right /= right.sum()
    assert ours.samples[:, 0].mean() == pytest.approx(right @ AXIS, abs=0.03)
    low, high = np.interp((0.025, 0.975), np.cumsum(right), AXIS)
    assert ours.intervals["E"] == pytest.approx((low, high), abs=0.08)
    twice = np.prod([likely / spread(AXIS) for likely, spread in pairs], axis=0)
    assert twice @ AXIS / twice.sum() > right @ AXIS + 0.2, "the prior of each, multiplied"
