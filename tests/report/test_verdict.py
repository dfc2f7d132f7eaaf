"""Sentences that say no more than the numbers."""

import numpy as np
import pytest

from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.rates import rates_of
from dma_lab.report.statistics import ToMatch, compute_statistics
from dma_lab.report.verdict import of_compute, verdicts
from dma_lab.scaling.optimum import Multiplier
from dma_lab.scaling.trainings import TrainingsFit

LAW = TrainingsFit(1.7, 40.0, 60.0, 0.3, 0.32, objective=0.0)


def multiplier(value, low, high, unreached=0.0):
    return Multiplier(1e12, 3.0, value, (low, high), unreached)


@pytest.mark.parametrize(
    ("now", "state", "said"),
    [
        ((1.35, 1.1, 1.6), "needs more", "dma needs 1.35 times MHA's compute [1.10, 1.60] for the same loss; "),
        ((0.8, 0.7, 0.95), "needs less", "dma needs 0.80 times MHA's compute [0.70, 0.95] for the same loss; "),
        (
            (1.05, 0.9, 1.2),
            "open",
            "Whether dma needs more compute than MHA for the same loss, or less, is open: 1.05 ",
        ),
        (
            (1.5, 0.9, np.inf),
            "open",
            "How much of MHA's compute dma needs for MHA's loss is open: 1.5 × [0.9, no upper",
        ),
        ((np.inf, 1.2, np.inf), "open", "How much of MHA's compute dma needs for MHA's loss is open: never [1.2, no "),
    ],
)
def test_the_sentence_is_as_sure_as_the_interval(now, state, said):
    ahead = multiplier(1.2, 0.5, 2.0)
    found = of_compute("dma", ToMatch(LAW, [multiplier(*now), ahead, ahead]), "5 seeds, 20 trainings; shared rate")
    assert found.state == state
    assert found.sentence.startswith(said)
    assert found.sentence.endswith("; 5 seeds, 20 trainings; shared rate.")
    assert found.further == "At 100 times the largest budget, by extrapolation: 1.2 × [0.5, 2]."


def found(tmp_path):
    (members,) = cohorts(read_runs(tmp_path / "runs")[0]).values()
    return compute_statistics(members, lambda step: None)


def test_what_is_not_known_is_said(add_run, tmp_path):
    for attention in ("mha", "dma"):
        add_run(attention)
    (said,) = verdicts(found(tmp_path))
    assert said.state == "not known"
    assert said.sentence == (
        "How much of MHA's compute dma needs is not known: these runs give no law for it; 1 seed, 1 training "
        "(MHA: 1); shared rate."
    )
    assert said.further.startswith("Nor is it known how its losses would differ with other seeds")
    for seed in (1, 2, 3):
        for attention in ("mha", "dma"):
            add_run(attention, seed=seed)
    (said,) = verdicts(found(tmp_path))
    # conftest: DMA's law lies 0.02 lower, documents differ by 0.01.
    assert "; 4 seeds, 4 trainings (MHA: 4); shared rate." in said.sentence
    assert said.further.startswith("Of 1 point (rung and budget) its loss is above MHA's in 0 and below in 1,")


def test_rates_of_one_rung_and_budget_are_not_called_rungs_and_budgets(add_run, tmp_path):
    for attention in ("mha", "dma"):
        for seed in (0, 1, 2, 3):
            for rate in (0.01, 0.002):
                add_run(attention, seed=seed, settings={"optimizer": {"learning_rate": rate}})
    (said,) = verdicts(found(tmp_path))
    assert said.further.startswith("Of 2 points (rung, budget and setting) its loss is above MHA's in 0 and below in 2")


def test_without_mha_nothing_is_said(add_run, tmp_path):
    add_run("dma")
    assert verdicts(found(tmp_path)) == []


def test_verdicts_come_backends_first_and_then_controls(add_run, tmp_path):
    for attention in ("dma_random", "gated_mha", "swa", "mha", "dma", "nsa"):
        add_run(attention)
    assert [said.backend for said in verdicts(found(tmp_path))] == ["dma", "nsa", "swa", "dma_random", "gated_mha"]


def test_plain_mha_stays_the_baseline_beside_variants_of_it(add_run, tmp_path):
    for attention in ("mha", "dma"):
        for recency in (None, "slope"):
            add_run(attention, settings={"attention": {"recency": recency}})
    assert [said.backend for said in verdicts(found(tmp_path))] == ["mha recency=slope", "dma", "dma recency=slope"]


def test_where_contexts_vary_within_a_rung_each_stands_beside_the_mha_of_its_own(add_run, tmp_path):
    for seed in range(3):
        for context in (64, 128):
            add_run("mha", seed=seed, context=context)
        add_run("dma", seed=seed, context=64)
    add_run("swa", context=256)
    dma, swa = verdicts(found(tmp_path))
    assert (dma.backend, swa.backend) == ("dma context=64", "swa context=256")
    assert dma.sentence.endswith("; 3 seeds, 3 trainings (mha context=64: 3); shared rate.")
    # conftest: DMA's law lies 0.02 lower, documents differ by 0.01.
    assert dma.further.startswith(
        "Of 1 point (rung and budget) its loss is above mha context=64's in 0 and below in 1,"
    )
    assert swa.sentence.endswith("; 1 seed, 1 training; no point shared with MHA to tell whether the rate is.")
    assert swa.further == "No run of it is paired with one of MHA's."


def rated(add_run, attention, *rates, **more):
    for rate in rates:
        add_run(attention, settings={"optimizer": {"learning_rate": rate}, **more})


def test_the_rate_is_said(add_run, tmp_path):
    rated(add_run, "mha", 0.01)
    rated(add_run, "dma", 0.01)
    rated(add_run, "swa", 0.02)
    rated(add_run, "nsa", 0.01, 0.02, 0.04)
    runs = read_runs(tmp_path / "runs")[0]
    assert rates_of(runs) == {
        "mha": "shared rate",
        "dma": "shared rate",
        "swa": "a rate other than MHA's at 1 of 1 points",
        "nsa": "the best of up to 3 rates per point",
    }


def test_a_tuned_rate_is_a_backends_own(add_run, tmp_path):
    rated(add_run, "mha", 0.01, tuned="tuned.yaml@12345678")
    rated(add_run, "dma", 0.02, tuned="tuned.yaml@12345678")
    assert set(rates_of(read_runs(tmp_path / "runs")[0]).values()) == {"its own tuned rate"}
