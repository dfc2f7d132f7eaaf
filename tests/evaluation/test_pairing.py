"""Paired differences against scipy's studentised intervals, and at their stated rate."""

import numpy as np
import pytest
from scipy.stats import bootstrap, ttest_rel

from dma_lab.evaluation.pairing import paired_difference


def documents(n: int, seed: int, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses of two models on n documents whose difficulty they share; the first is worse by ``shift`` a token."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(50, 500, size=n)
    difficulty = generator.normal(3.0, 0.5, size=n)
    own = generator.normal(0.0, 0.02, size=(2, n))
    return (difficulty + shift + own[0]) * tokens, (difficulty + own[1]) * tokens, tokens


def test_the_interval_of_equally_long_documents_is_students():
    half = np.random.default_rng(0).normal(0, 0.5, size=40)  # and its mirror image: of no skewness
    ours, theirs = np.concatenate((0.1 + half, 0.1 - half)), np.full(80, 0.05)
    found = paired_difference(ours * 300, theirs * 300, np.full(80, 300))
    expected = ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))


def test_the_interval_of_many_documents_is_that_of_scipys_bca_bootstrap():
    ours, theirs, tokens = documents(400, seed=0, shift=0.01)
    found = paired_difference(ours, theirs, tokens)
    expected = bootstrap(
        (ours - theirs, tokens),
        lambda difference, count, axis: difference.sum(axis) / count.sum(axis),
        paired=True,
        vectorized=True,
        method="BCa",
        n_resamples=5_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.difference == pytest.approx((ours - theirs).sum() / tokens.sum())
    assert found.interval == pytest.approx((expected.low, expected.high), abs=2e-4)


@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_cover_the_truth_at_their_rate(skewed):
    """Skewed: a few documents differ by much, and some are far longer than others."""
    covered = 0
    for seed in range(800):
        ours, theirs, tokens = documents(60, seed=seed, shift=0.01)
        if skewed:
            generator = np.random.default_rng([seed, 1])
            tokens = generator.lognormal(5, 0.8, 60)
            ours, theirs = (0.01 + 0.02 * (generator.gamma(2.0, size=60) - 2.0)) * tokens, np.zeros(60)
        interval = paired_difference(ours, theirs, tokens).interval
        covered += interval is None or interval[0] <= 0.01 <= interval[1]
    # 800 at 95 %: 0.015 is two of their standard errors.
    assert 0.93 <= covered / 800 <= 0.97


def test_pairing_sees_what_two_naked_means_cannot():
    ours, theirs, tokens = documents(200, seed=3, shift=0.01)
    found = paired_difference(ours, theirs, tokens)
    assert found.interval[0] > 0
    assert np.std(ours / tokens) / np.sqrt(200) > 0.03, "either mean is uncertain by more than the difference"


def test_documents_without_tokens_do_not_enter():
    ours, theirs, tokens = documents(30, seed=4, shift=0.0)
    padded = [np.append(values, 0.0) for values in (ours, theirs, tokens)]
    assert paired_difference(*padded) == paired_difference(ours, theirs, tokens)


@pytest.mark.parametrize(
    ("tokens", "effective"),
    [([500], 1.0), ([100] * 19, 19.0), ([100] * 20, 20.0), ([1000, *[10] * 99], 1990**2 / (1000**2 + 99 * 10**2))],
    ids=["one", "19", "20", "one that outweighs 99"],
)
def test_few_effective_documents_give_a_difference_and_no_interval(tokens, effective):
    losses = np.linspace(-0.2, 0.1, len(tokens)) * tokens
    found = paired_difference(losses, np.zeros(len(tokens)), tokens)
    assert found.difference == pytest.approx(losses.sum() / sum(tokens))
    assert (found.documents, found.effective_documents) == (len(tokens), pytest.approx(effective))
    assert (found.interval is None) == (effective < 20)


def test_what_was_not_scored_together_is_refused():
    with pytest.raises(ValueError, match="different documents"):
        paired_difference([1.0, 2.0], [1.0], [3, 4])
    with pytest.raises(ValueError, match="no document"):
        paired_difference([0.0], [0.0], [0])
