"""A loss that stays far above its median is a divergence; what is watched goes on where it was."""

import json

import pytest

from dma_lab.train.divergence import DivergenceWatch


def watched(losses, watch=None) -> DivergenceWatch:
    watch = watch or DivergenceWatch()
    for step, loss in enumerate(losses, 1):
        watch.add(step, loss, skipped=False)
    return watch


CALM_LOSSES = [3.0] * 128


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ([9.0 - 6.0 * min(1, step / 300) for step in range(2000)], None),
        ([3.0] * 20 + [9.0] * 5000, None),
        (CALM_LOSSES + [4.6] * 63 + [4.4], None),
        (CALM_LOSSES + [4.6] * 64, 192),
        (CALM_LOSSES + [4.4] * 500, None),  # less than half as much again
        (([0.1] * 128) + [1.0] * 500, None),  # ten times as much, and not a nat above
        (([0.1] * 128) + [1.2] * 64, 192),
        (CALM_LOSSES + ([9.0] * 63 + [3.0]) * 3, None),
        ([3.0] * 1000 + [7.0] * 200, 1064),
    ],
    ids=[
        "a calm run",
        "the start",
        "63 steps",
        "64 steps",
        "a higher level",
        "near 0",
        "far above 0",
        "spikes",
        "late",
    ],
)
def test_a_loss_that_stays_far_above_its_median_is_a_divergence(losses, step):
    verdict = watched(losses).verdict
    assert (verdict and verdict.step) == step
    if step is not None:
        assert verdict.since == step - 63


def test_the_watch_goes_on_from_its_state_where_it_was():
    first = watched([*CALM_LOSSES, *[9.0] * 40])
    second = DivergenceWatch()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for watch in (first, second):
        for step in range(169, 193):
            watch.add(step, 9.0, skipped=False)
    assert first.verdict == second.verdict
    assert first.verdict.step == 192
