"""``tuned=FILE`` through the entry point of training: what a run takes of a file, what it keeps, what is refused."""

import dataclasses
import json
from dataclasses import asdict

import pytest
import yaml

from dma_lab.messages import UserError, print_once
from dma_lab.train.fit_run import fit_run
from dma_lab.train.identity import run_name
from dma_lab.train.reading import read_settings
from tests.made_up import configuration
from tests.train.conftest import settings_of

RECIPE = 0.00865
"""Of nano."""
CHOICE = {"options": {"score_rate": 10.0}, "tried": 3, "trainings": 20, "said": "of 3 settings tried ... is chosen"}


def entry(attention, options, multiplier, notes=(), choice=None):
    written = settings_of([f"attention={attention}"]).attention.written() | options
    point = {"parameters": 148_096.0, "multiplier": multiplier, "interval": None}
    return {
        "overrides": f"attention={attention}", "attention": written, "points": [point], "trainings": 8,
        "notes": list(notes), "choice": choice,
    }  # fmt: skip


@pytest.fixture(scope="module")
def content():
    return {
        "optimizer": "muon",
        "backends": [
            entry("mha", {}, 0.5),
            entry("dma", {}, 0.75, choice=CHOICE),
            entry("dma", {"score_rate": 10.0}, 2.0, ["at nano the best is the highest rate tried"]),
            entry("dma", {"score": "linear"}, 3.0),
        ],
    }


@pytest.fixture
def file(content, tmp_path):
    path = tmp_path / "tuned.yaml"
    path.write_text(yaml.safe_dump(content))
    print_once.cache_clear()
    return path


def given(overrides):
    """As the entry point reads a command line."""
    return read_settings(configuration(overrides), overrides)


def test_chosen_settings_are_taken_with_their_rate_and_said(file, capsys):
    settings = given(["attention=dma", f"tuned={file}"])
    assert settings.attention.options.score_rate == 10.0
    assert settings.optimizer.learning_rate == pytest.approx(2.0 * RECIPE, rel=0.01)
    assert settings.tuning.options == {"score_rate": 10.0}
    assert settings.tuning.trainings == 20
    assert settings.tuning.notes == [CHOICE["said"], "at nano the best is the highest rate tried"]
    said = capsys.readouterr().err
    assert f"tuned={file}: attention=dma takes attention.score_rate=10.0, which was chosen for it." in said
    written = settings.written()
    assert written["attention"]["score_rate"] == 10.0
    assert "tuning" not in written
    mha = given(["attention=mha", f"tuned={file}"])
    assert (mha.tuning.options, mha.tuning.trainings, mha.tuning.notes) == ({}, 8, [])


@pytest.mark.parametrize(
    ("option", "multiplier"),
    [("attention.score_rate=1.0", 0.75), ("attention.score=linear", 3.0), ("++attention.score=exp", 0.75)],
)
def test_an_option_given_by_hand_wins_and_is_said(file, option, multiplier, capsys):
    """Also one that is given the value it would have anyhow: who names it does not want it replaced."""
    settings = given(["attention=dma", option, f"tuned={file}"])
    name, value = option.strip("+").removeprefix("attention.").split("=")
    assert str(getattr(settings.attention.options, name)) == value
    assert settings.attention.options.score_rate == 1.0
    assert settings.optimizer.learning_rate == pytest.approx(multiplier * RECIPE, rel=0.01)
    assert settings.tuning.options == {}
    assert f"attention.{name}={value} is given, so attention.score_rate=10.0, which tuned=" in capsys.readouterr().err


def test_the_chosen_settings_by_hand_are_the_same_run(file):
    chosen = given(["attention=dma", f"tuned={file}"])
    by_hand = given(["attention=dma", "attention.score_rate=10.0", f"tuned={file}"])
    assert by_hand == chosen
    assert run_name(by_hand, "data", "fp32") == run_name(chosen, "data", "fp32")
    plain = given(["attention=dma", "attention.score_rate=1.0", f"tuned={file}"])
    assert run_name(plain, "data", "fp32") != run_name(chosen, "data", "fp32")


def test_a_control_takes_no_settings_that_were_chosen_for_its_backend(file):
    with pytest.raises(UserError, match="has no rate for attention=dma with these options"):
        given(["attention=dma_random", f"tuned={file}"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["attention=swa"], "has no rate for attention=swa with these options (it has mha, dma)"),
        (["attention=dma", "attention.window=9"], "has no rate for attention=dma with these options"),
        (["attention=dma", "attention.recent=3"], "has no rate for attention=dma with these options"),
        (["attention=mha", "optimizer.learning_rate=0.01"], "and optimizer.learning_rate=0.01 both set the rate"),
        (["attention=mha", "optimizer=adamw"], "was tuned with optimizer=muon, not adamw"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_entry_point_refuses_what_the_file_does_not_hold(file, overrides, said):
    with pytest.raises(UserError) as refusal:
        given([*overrides, f"tuned={file}"])
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_option_that_came_after_the_file_had_its_default_then(content, file, tmp_path):
    content = json.loads(json.dumps(content))
    for backend in content["backends"]:
        for option in ("recency", "scores", "gate", "sinks"):
            backend["attention"].pop(option, None)
    earlier = tmp_path / "earlier.yaml"
    earlier.write_text(yaml.safe_dump(content))
    now, then = (given(["attention=dma", f"tuned={of}"]) for of in (file, earlier))
    assert dataclasses.replace(then, tuned=now.tuned) == now
    with pytest.raises(UserError, match="has no rate for attention=dma with these options"):
        given(["attention=dma", "attention.sinks=2", f"tuned={earlier}"])


@pytest.mark.parametrize("content", [None, "points: [", "optimizer: adamw", b"\xff\xfe", "optimizer: 3\nbackends: []"])
def test_what_is_no_such_file_is_refused(tmp_path, content):
    file = tmp_path / "wrong.yaml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"wrong\.yaml (cannot be read|is no file of tuned rates)"):
        given([f"tuned={file}"])


def test_points_that_do_not_rise_are_refused(content, tmp_path):
    """Between them nothing could be worked out, and a number would come of it all the same."""
    points = [{"parameters": size, "multiplier": 1.0, "interval": None} for size in (4e5, 1e5)]
    file = tmp_path / "tuned.yaml"
    file.write_text(yaml.safe_dump(content | {"backends": [content["backends"][0] | {"points": points}]}))
    with pytest.raises(UserError, match="parameters of the points of `attention=mha` do not rise; sort them"):
        given(["attention=mha", f"tuned={file}"])


def test_a_chosen_option_that_the_backend_cannot_have_is_refused(content, tmp_path):
    dma = content["backends"][1] | {"choice": CHOICE | {"options": {"score": "cubic"}}}
    wrong = entry("dma", {"score": "cubic"}, 1.0)
    file = tmp_path / "tuned.yaml"
    file.write_text(yaml.safe_dump(content | {"backends": [dma, wrong]}))
    with pytest.raises(UserError, match=r"attention\.score=cubic: "):
        given(["attention=dma", f"tuned={file}"])


def test_a_run_keeps_what_it_took_when_the_file_is_gone(file, overrides, capsys):
    """Of a branch, too, in its summary; and its config.yaml has the options themselves."""
    command = [*overrides, "attention=dma", "tokens=2048", f"tuned={file}"]
    summary = fit_run(given(command))
    file.unlink()
    assert asdict(summary.tuning) == {
        "multiplier": 2.0, "options": {"score_rate": 10.0}, "trainings": 20,
        "notes": [CHOICE["said"], "at nano the best is the highest rate tried"],
    }  # fmt: skip
    (run,) = file.parent.glob("train-*")
    assert json.loads((run / "summary.json").read_text())["tuning"] == asdict(summary.tuning)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["attention"]["score_rate"], config["tuned"].split("@")[0]) == (10.0, "tuned.yaml")


@pytest.mark.parametrize(("script", "given"), [("train.py", False), ("train.py", True), ("plan.py", True)])
def test_the_doors_know_what_the_command_line_gives(script, given, file, overrides, run_script):
    command = [*overrides, "attention=dma", "tokens=1024", f"tuned={file}"]
    command += ["attention.score_rate=1.0"] if given else []
    command += ["flops_per_second=1e9"] if script == "plan.py" else []
    done = run_script(script, command)
    assert done.returncode == 0, done.stderr
    sentence = "is given, so" if given else "attention=dma takes attention.score_rate=10.0, which was chosen for it."
    assert done.stderr.count(sentence) == 1
    assert ("score_rate=10.0" in done.stdout) != given, "in the plan's row and the summary's"
