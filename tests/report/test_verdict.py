"""Sentences that say no more than the numbers."""

import numpy as np
import pytest

from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.statistics import ToMatch, compute_statistics
from dma_lab.report.verdict import compute_sentence, verdicts
from dma_lab.scaling.optimum import Multiplier
from dma_lab.scaling.trainings import TrainingsFit

LAW = TrainingsFit(1.7, 40.0, 60.0, 0.3, 0.32, objective=0.0)


def multiplier(value, low, high, unreached=0.0):
    return Multiplier(1e12, 3.0, value, (low, high), unreached)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ((1.35, 1.1, 1.6), "dma: it needs 1.35 times MHA's compute for the same loss [1.10, 1.60]; 5 trainings of"),
        ((0.8, 0.7, 0.95), "dma: it needs 0.80 times MHA's compute for the same loss [0.70, 0.95]; 5 trainings of"),
        ((1.05, 0.9, 1.2), "dma: whether it needs more or less compute than MHA for the same loss is open, 1.05 times"),
        ((1.5, 0.9, np.inf), "dma: how much of MHA's compute it needs for MHA's loss is open, 1.5 × [0.9, no upper"),
        ((np.inf, 1.2, np.inf), "dma: how much of MHA's compute it needs for MHA's loss is open, never [1.2, no upper"),
    ],
)
def test_the_sentence_is_as_sure_as_the_interval(now, said):
    ahead = multiplier(1.2, 0.5, 2.0)
    text = compute_sentence("dma", ToMatch(LAW, [multiplier(*now), ahead, ahead]), "5 trainings of 2 seeds")
    assert text.startswith(said)
    assert "5 trainings of 2 seeds" in text


def found(tmp_path):
    (members,) = cohorts(read_runs(tmp_path / "runs")[0]).values()
    return compute_statistics(members, lambda step: None)


def test_what_is_not_known_is_said(add_run, tmp_path):
    for attention in ("mha", "dma"):
        add_run(attention)
    (said,) = verdicts(found(tmp_path))
    assert said.startswith("dma: how much of MHA's compute it needs is not known")
    assert "(1 training of 1 seed); nor is it how its losses would differ with other seeds" in said
    for seed in (1, 2, 3):
        for attention in ("mha", "dma"):
            add_run(attention, seed=seed)
    (said,) = verdicts(found(tmp_path))
    # conftest: DMA's law lies 0.02 lower, documents differ by 0.01.
    assert "(4 trainings of 4 seeds); of 1 point (rung and budget) its loss is above MHA's in 0 and below in 1," in said


def test_without_mha_nothing_is_said(add_run, tmp_path):
    add_run("dma")
    assert verdicts(found(tmp_path)) == []
