"""Widths that make two costs agree, or a refusal with both numbers."""

import pytest

from dma_lab.messages import UserError
from dma_lab.model.matching import match_width


@pytest.mark.parametrize("extra", [0, 99, 40_000, 400_000, -300_000])
def test_the_matched_width_agrees_within_the_tolerance(extra):
    def cost(width):
        return 1_000_000 + extra + 2_304 * width

    target = 1_000_000 + 2_304 * 2304
    width = match_width(1_000_000 + extra, 2_304, target, start=2304, kind="parameters")
    assert abs(cost(width) / target - 1) <= 0.005
    best = min(abs(cost(w) / target - 1) for w in range(1, 4000))
    assert abs(cost(width) / target - 1) <= max(5e-4, best)
    assert (width <= 2304) if extra >= 0 else (width > 2304)


def test_round_widths_are_preferred_and_an_exact_one_is_kept():
    assert match_width(0, 10, 10 * 191, start=191, kind="parameters") == 191
    assert match_width(5_000, 1_000, 1_024_000, start=1000, kind="parameters", tolerance=0.05) == 1024


@pytest.mark.parametrize(("fixed", "target"), [(5_000_000, 1_000_000), (0, 100)])
def test_what_cannot_be_matched_is_refused_with_both_numbers(fixed, target):
    with pytest.raises(UserError) as refusal:
        match_width(fixed, 3_000, target, start=64, kind="non-embedding parameters")
    assert f"{target:,}" in str(refusal.value)
    assert f"{fixed + 3_000:,} non-embedding parameters" in str(refusal.value)
