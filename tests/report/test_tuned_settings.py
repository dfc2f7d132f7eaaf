"""DMA's own settings, tuned: chosen over the default where shown to be better, carried by the file to runs."""

from functools import partial

import pytest
import yaml

from dma_lab.report.tuned_file import write_tuned
from dma_lab.report.tuned_settings import chosen_settings, overrides_of
from dma_lab.report.tuning_runs import read_sweeps
from tests.report.swept import RATES, RECIPE, write_sweep
from tests.train.conftest import settings_of

NARROW = RATES[2:6]


@pytest.fixture
def sweep(add_run):
    """Of DMA; the default's lowest loss is 3.0, and seeds lie 0.02 apart."""
    return partial(write_sweep, add_run, "dma", rates=NARROW, noise=0.02)


@pytest.fixture
def chosen(tmp_path):
    """By overrides, of every attention that was swept."""

    def choose():
        tuned = read_sweeps([tmp_path]).tuned
        choices = chosen_settings(tuned.values())
        runs = {written: next(iter(by_size.values())).runs[0] for written, by_size in tuned.items()}
        return {overrides_of(run): choices.get(written) for written, run in runs.items()}

    return choose


def test_a_setting_that_is_shown_to_be_better_is_chosen_and_a_run_takes_it(sweep, tmp_path, capsys):
    sweep()
    best = {("dma", rung): 1.2 * rate for rung, rate in RECIPE.items()}
    sweep(rates=[2 * rate for rate in NARROW], lowest=2.9, best=best, options={"score_rate": 10.0})
    sweep(lowest=2.95, options={"score": "linear", "recent": 16})
    sweep(lowest=3.1, options={"recent": 16})
    file = tmp_path / "tuned.yaml"
    write_tuned([tmp_path], file)
    entries = {own["overrides"]: own for own in yaml.safe_load(file.read_text())["backends"]}
    default = entries["attention=dma"]
    choice = default["choice"]
    assert choice["options"] == {"score_rate": 10.0}
    assert (choice["tried"], choice["trainings"], default["trainings"]) == (4, 4 * 16, 16)
    assert choice["said"].startswith(
        "of 4 settings tried attention.score_rate=10.0 (0.1000 nats below the default's loss at nano and 440k, p "
    )
    assert f"dma: {choice['said']} (64 trainings)" in capsys.readouterr().out
    assert [own["choice"] for name, own in entries.items() if name != "attention=dma"] == [None] * 3
    settings = settings_of(["model=440k", "attention=dma", f"tuned={file}"])
    assert settings.attention.options.score_rate == 10.0
    assert settings.optimizer.learning_rate == pytest.approx(1.2 * 0.0072, rel=0.01)
    assert settings.tuning.trainings == 64


def test_the_best_of_several_by_luck_is_not_chosen(sweep, chosen):
    """Each lies a few thousandths of a nat below the default, and seeds differ by more."""
    sweep()
    for number, options in enumerate(({"score_rate": 10.0}, {"score_scale": 10.0}, {"recent": 16})):
        sweep(lowest=2.998 - 0.001 * number, options=options)
    choice = chosen()["attention=dma"]
    assert choice.options == {}
    assert (choice.tried, choice.trainings) == (4, 4 * 16)
    assert "none is shown to be better than the default, the most attention.recent=16 (0.00" in choice.said


def test_a_setting_that_is_worse_at_one_rung_is_not_chosen(sweep, chosen):
    sweep()
    sweep(rungs=["nano"], lowest=2.7, options={"score_rate": 10.0})
    sweep(rungs=["440k"], lowest=3.01, options={"score_rate": 10.0})
    choice = chosen()["attention=dma"]
    assert choice.options == {}
    assert "nats below the default's loss at nano and 440k, not at each" in choice.said


def test_a_default_whose_own_rate_was_not_found_makes_no_other_setting_better(sweep, chosen):
    """Beyond the rates tried its loss may be lower than any."""
    edge = {("dma", "nano"): 0.1}
    sweep(rungs=["nano"], best=edge)
    sweep(rungs=["nano"], lowest=2.0, options={"score_rate": 10.0})
    choice = chosen()["attention=dma"]
    assert choice.options == {}
    assert choice.said.endswith("the best rate of the default, which they are compared with, is open at nano")


def test_settings_swept_over_other_tokens_or_without_the_default_are_not_compared(sweep, chosen):
    sweep(rungs=["nano"])
    sweep(rungs=["nano"], lowest=2.0, options={"score": "linear"}, tokens=500_000)
    choice = chosen()["attention=dma"]
    assert choice.options == {}
    assert "none was swept at a rung and over tokens at which the default was" in choice.said


def test_with_one_seed_nothing_is_chosen(sweep, chosen):
    sweep(rungs=["nano"], seeds=[0])
    sweep(rungs=["nano"], seeds=[0], lowest=2.0, options={"score": "linear"})
    assert chosen()["attention=dma"].options == {}


def test_options_that_make_another_model_are_no_settings_to_choose_from(sweep, chosen):
    """A window or a slope is what a comparison is about, however low its loss."""
    sweep(rungs=["nano"])
    for options in ({"window": 16}, {"recency": "slope"}, {"sinks": 4}):
        sweep(rungs=["nano"], lowest=2.0, options=options)
    assert list(chosen().values()) == [None] * 4


def test_each_variant_has_a_choice_of_its_own(sweep, chosen):
    sweep(rungs=["nano"])
    for lowest, options in ((3.0, {"window": 16}), (2.5, {"window": 16, "score": "linear"})):
        sweep(rungs=["nano"], lowest=lowest, options=options)
    choices = chosen()
    assert choices["attention=dma"] is None
    assert choices["attention=dma attention.window=16"].options == {"score": "linear"}
