"""Paired differences against scipy's bootstrap, and at their stated rate."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from dma_lab.scaling.paired import paired_difference


def documents(n: int, seed: int, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses of two models on n documents whose difficulty they share; the first is worse by ``shift`` a token."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(50, 500, size=n)
    difficulty = generator.normal(3.0, 0.5, size=n)
    own = generator.normal(0.0, 0.02, size=(2, n))
    return (difficulty + shift + own[0]) * tokens, (difficulty + own[1]) * tokens, tokens


def test_the_interval_is_that_of_scipys_bootstrap():
    ours, theirs, tokens = documents(80, seed=0, shift=0.01)
    found = paired_difference(ours, theirs, tokens)
    expected = bootstrap(
        (ours - theirs, tokens),
        lambda difference, count, axis: difference.sum(axis) / count.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=10_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.difference == pytest.approx((ours - theirs).sum() / tokens.sum())
    assert found.interval == pytest.approx((expected.low, expected.high), abs=4e-4)


def test_intervals_cover_the_truth_at_their_rate():
    covered = 0
    for seed in range(300):
        found = paired_difference(*documents(60, seed=seed, shift=0.01), bootstrap=400)
        low, high = found.interval
        covered += low <= 0.01 <= high
    assert 0.90 <= covered / 300 <= 0.98


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
