"""Runs that are no one sweep, or are read twice: refused, or counted once."""

import math
import shutil
from functools import partial

import pytest
import yaml

from dma_lab.messages import UserError
from dma_lab.report.collect import read_runs
from dma_lab.report.tuned_file import write_tuned
from dma_lab.report.tuning import seed_noise, tune
from tests.report.swept import BEST, PARAMETERS, RATES, RECIPE, add_swept, write_sweep


@pytest.fixture
def sweep(add_run):
    return partial(write_sweep, add_run, "mha", rungs=["nano"])


def of_nano(add_run, rates, losses=None, **more):
    """Runs of MHA at nano whose settings a test gives."""
    settings = more.pop("settings", {})
    for rate in rates:
        add_run(
            "mha", "nano", recipe_learning_rate=RECIPE["nano"], params_non_embedding=PARAMETERS["nano"],
            settings={"optimizer": {"name": "muon", "learning_rate": rate}} | settings,
            val_loss=3 + 0.1 * math.log(rate / BEST["mha", "nano"]) ** 2, **more,
        )  # fmt: skip


def test_sweeps_of_two_studies_are_refused(sweep, add_run, tmp_path):
    sweep()
    for rate in RATES[:4]:
        add_swept(add_run, "mha", "440k", rate, data_fingerprint="0123456789abcdef")
    with pytest.raises(UserError, match=r"holds sweeps of more than one study: .* differ in data_fingerprint; tune"):
        write_tuned([tmp_path], tmp_path / "tuned.yaml")


def test_two_sweeps_that_differ_in_more_are_refused(sweep, add_run, tmp_path):
    sweep(rates=RATES[:3])
    for rate in RATES[:3]:
        settings = {"optimizer": {"name": "muon", "learning_rate": rate, "weight_decay": 0.0}}
        add_run("mha", "nano", settings=settings, params_non_embedding=PARAMETERS["nano"])
    with pytest.raises(UserError, match=r"differ in more than learning rate and seed \(optimizer.weight_decay\)"):
        write_tuned([tmp_path], tmp_path / "tuned.yaml")


def test_two_sweeps_of_one_budget_whose_warmups_differ_are_refused(sweep, add_run, tmp_path):
    """Of several budgets the longest is taken; between these nothing would choose but the order they were read in."""
    sweep(rates=RATES[:4])
    schedule = {"name": "wsd", "warmup_fraction": 0.2, "warmup_steps": None, "decay_fraction": 0.2}
    of_nano(add_run, RATES[:4], settings={"schedule": schedule})
    with pytest.raises(UserError, match=r"differ in more than learning rate and seed \(schedule.warmup\)"):
        write_tuned([tmp_path], tmp_path / "tuned.yaml")


def test_two_optimizers_are_refused(sweep, add_run, tmp_path):
    sweep()
    add_run("mha", "nano", settings={"optimizer": {"name": "adamw", "learning_rate": 0.004}})
    with pytest.raises(UserError, match="holds runs of adamw and muon; tune one optimizer at a time"):
        write_tuned([tmp_path], tmp_path / "tuned.yaml")


def test_copies_of_runs_are_no_seeds_of_their_own(sweep, tmp_path):
    """Read twice, they would halve the noise and double what was spent."""
    sweep(noise=0.01)
    alone = read_runs(tmp_path / "runs")[0]
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    both = read_runs(tmp_path / "runs", tmp_path / "copy")[0]
    once, twice = (tune(runs, seed_noise(runs, runs)) for runs in (alone, both))
    # By hand: two seeds 0.01 apart have a variance of 0.005² * 2.
    assert once.noise.variance == pytest.approx(5e-5)
    assert twice.noise == once.noise
    assert twice.best.interval == once.best.interval
    assert (once.trainings, twice.trainings) == (14, 14)
    write_tuned([tmp_path / "runs", tmp_path / "copy"], tmp_path / "tuned.yaml")
    (backend,) = yaml.safe_load((tmp_path / "tuned.yaml").read_text())["backends"]
    assert backend["trainings"] == 14


def test_branches_of_one_training_that_diverged_are_one_training(sweep, add_run, tmp_path):
    sweep()
    for tokens in (250_000, 500_000):
        add_swept(add_run, "mha", "nano", 0.05, tokens=tokens, status="diverged")
    runs = read_runs(tmp_path / "runs")[0]
    write_tuned([tmp_path], tmp_path / "tuned.yaml")
    (backend,) = yaml.safe_load((tmp_path / "tuned.yaml").read_text())["backends"]
    assert len(runs) == 16
    assert backend["trainings"] == 15


def test_seeds_that_some_rates_lack_are_said(sweep, tmp_path):
    """A seed that is better at all rates would draw the curve to the rates that have it."""
    sweep(seeds=[0, 1], rates=RATES[:4])
    sweep(seeds=[1], rates=RATES[4:])
    runs = read_runs(tmp_path / "runs")[0]
    (note,) = tune(runs, seed_noise(runs, runs)).notes
    assert note == "not every rate has the same seeds (0, 1 and 1): which rates they fell to is in the curve"


def test_a_single_seed_is_no_noise_that_leaves_the_optimum_open(sweep, tmp_path):
    sweep(seeds=[0])
    runs = read_runs(tmp_path / "runs")[0]
    assert tune(runs, seed_noise(runs, runs)).notes == ["no two seeds tell how well the best rate is known"]


def test_branches_of_the_same_trainings_are_no_further_degrees_of_freedom(sweep, tmp_path):
    """On the page all budgets are swept, and noise is pooled over them: of 3 trainings at 3 rates, not of 9."""
    for tokens in (250_000, 500_000, 1_000_000):
        sweep(rates=RATES[2:5], tokens=tokens, noise=0.01)
    runs = read_runs(tmp_path / "runs")[0]
    longest = [run for run in runs if run.summary.tokens == 1_000_000]
    noise = seed_noise(longest, runs)
    assert noise.freedom == 3
    assert noise.variance == pytest.approx(5e-5)
