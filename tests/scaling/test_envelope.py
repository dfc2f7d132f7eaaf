"""The envelope of curves of a known law against that law's own optimum."""

import numpy as np
import pytest

from dma_lab.messages import UserError
from dma_lab.scaling.envelope import Curve, fit_envelope
from dma_lab.scaling.fit import ParametricFit

LAW = ParametricFit(E=1.7, A=400.0, B=2000.0, alpha=0.34, beta=0.37, objective=0.0)
EXPONENT = LAW.beta / (LAW.alpha + LAW.beta)
"""Of N* ∝ C^a (arXiv 2203.15556, equation 4)."""


def curve(params, noise=0.0, generator=None, points=40):
    flops = np.geomspace(2e17, 2e21, points)
    tokens = flops / 6 / params
    loss = LAW.predict(params, tokens)
    if generator is not None:
        loss = loss * np.exp(noise * generator.normal())
    return Curve(params, flops, tokens, loss)


@pytest.mark.parametrize(("sizes", "tolerance"), [(4, 0.05), (25, 0.005)])
def test_the_power_laws_are_those_of_the_law_however_few_the_sizes(sizes, tolerance):
    envelope = fit_envelope([curve(params) for params in np.geomspace(1e8, 5e9, sizes)])
    assert envelope.params_law.exponent == pytest.approx(EXPONENT, rel=tolerance)
    assert envelope.tokens_law.exponent == pytest.approx(1 - EXPONENT, rel=tolerance)
    params, tokens = LAW.optimal(1e20)
    assert envelope.params_law.at(1e20) == pytest.approx(params, rel=0.05)
    assert envelope.tokens_law.at(1e20) == pytest.approx(tokens, rel=0.05)


def test_the_envelope_is_the_lowest_curve_at_every_compute():
    curves = [curve(params) for params in (1e8, 5e8, 2.5e9)]
    envelope = fit_envelope(curves[::-1])
    losses = [np.interp(np.log(envelope.flops), np.log(c.flops), c.loss) for c in curves]
    assert envelope.loss == pytest.approx(np.min(losses, axis=0))
    assert envelope.params == pytest.approx(np.array([1e8, 5e8, 2.5e9])[np.argmin(losses, axis=0)])
    assert envelope.tokens == pytest.approx(envelope.flops / 6 / envelope.params)
    assert envelope.params[0] == 1e8
    assert envelope.params[-1] == 2.5e9
    assert envelope.handovers[1] == pytest.approx(np.sqrt([1e8 * 5e8, 5e8 * 2.5e9]))


def test_where_a_curve_begins_or_ends_below_the_others_nothing_is_handed_over():
    """The largest size begins when it is already best: when it became so is not known."""
    begins, whole = curve(2.5e9), [curve(1e8), curve(5e8)]
    late = begins.flops > 1e21
    begins = Curve(2.5e9, *(values[late] for values in (begins.flops, begins.tokens, begins.loss)))
    with pytest.raises(UserError, match="lowest curve changes size 1 times among 3 sizes"):
        fit_envelope([*whole, begins])


def test_curves_that_are_none_are_refused():
    with pytest.raises(UserError, match="no training curve"):
        fit_envelope([])
    one = np.ones(1)
    with pytest.raises(ValueError, match="2 or more points of rising FLOP"):
        fit_envelope([curve(1e8), Curve(1e9, one, one, one)])
    broken = curve(5e8)
    broken.loss[3] = np.nan
    with pytest.raises(UserError, match="loss of run 3 is nan"):
        fit_envelope([curve(1e8), broken, curve(2.5e9)])
    with pytest.raises(UserError, match="bootstrap=1: a 95 % interval needs at least 20 resamples"):
        fit_envelope([curve(1e8), curve(5e8), curve(2.5e9)], bootstrap=1)


def test_two_seeds_of_a_size_that_change_places_are_no_handover():
    crossing = curve(5e8)
    tilt = np.linspace(-0.01, 0.01, len(crossing.loss))
    tilted = [Curve(5e8, crossing.flops, crossing.tokens, crossing.loss + sign * tilt) for sign in (-1, 1)]
    envelope = fit_envelope([curve(1e8), *tilted, curve(2.5e9)])
    assert len(envelope.handovers[0]) == 2


def test_intervals_by_resampled_curves_hold_the_truth():
    sizes, held, studies = np.geomspace(1e8, 5e9, 12), 0, 20
    for study in range(studies):
        generator = np.random.default_rng(study)
        envelope = fit_envelope([curve(params, 0.002, generator) for params in sizes], bootstrap=60)
        low, high = envelope.params_law.exponent_interval
        held += low <= EXPONENT <= high
        assert 0 < high - low < 1
    assert held >= 17
