"""``dma-lab COMMAND``: the entry points by name, and a config folder of the user's own."""

import re
import sys
from pathlib import Path

import pytest

from dma_lab.__main__ import COMMANDS, main
from dma_lab.settings import CONFIG_DIR
from dma_lab.user_configs import add_user_configs, config_dirs
from tests.made_up import TINY
from tests.plugins import anchored as anchored  # fixtures
from tests.plugins import installed as installed

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def called(monkeypatch, capsys):
    """``called(*arguments)``: status, stdout and stderr of ``dma-lab ARGUMENTS``."""

    def call(*arguments: str) -> tuple[int, str, str]:
        from hydra.core.global_hydra import GlobalHydra

        GlobalHydra.instance().clear()
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.setattr(sys, "argv", ["dma-lab", *arguments])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def test_help_names_every_command_and_each_has_a_script_at_the_top(called):
    for arguments in ((), ("--help",), ("-h",)):
        status, out, _ = called(*arguments)
        assert status == 0
        assert re.findall(r"^  (\w+) ", out, flags=re.MULTILINE) == list(COMMANDS)
    assert {f"{name}.py" for name in COMMANDS} == {file.name for file in ROOT.glob("*.py")}
    for name in COMMANDS:
        assert f"from dma_lab.commands.{name} import run\n" in (ROOT / f"{name}.py").read_text()


def test_what_is_no_command_is_one_sentence(called):
    assert called("trian", "model=1m") == (
        2,
        "",
        "error: 'trian' is no command; choose one of: train, plan, evaluate, report, export, bench.\n",
    )
    status, _, err = called("bench", "karnels")
    assert (status, err.startswith("error: karnels is no benchmark")) == (2, True)


def test_bench_says_its_suites_and_what_each_is_measured_with(called):
    status, out, _ = called("bench", "--help")
    assert status == 0
    assert {f"bench_{name}" for name in re.search("one of: (.*)\\.", out).group(1).split(", ")} == {
        file.stem for file in CONFIG_DIR.glob("bench_*.yaml")
    }
    status, out, _ = called("bench", "decode", "--cfg", "job")
    assert (status, "histories:\n- 4096\n" in out) == (0, True)


def test_settings_are_overrides_and_shown(called):
    status, out, _ = called("train", "model=1m", "--cfg", "job")
    assert status == 0
    assert re.search(r"^model:\n  name: 1m$", out, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        ("train", "seed: 0"),
        ("plan", "flops_per_second: null"),
        ("evaluate", "suite: ???"),
        ("report", "points: null"),
        ("export", "format: auto"),
    ],
)
def test_help_shows_a_commands_settings_before_any_is_given(called, command, setting):
    status, out, _ = called(command, "--help")
    assert status == 0
    assert f"\n{setting}\n" in out


def test_a_choice_that_must_be_made_is_said_with_what_there_is(called):
    status, _, err = called("evaluate", "checkpoint=x")
    assert status == 2
    assert err.endswith(
        "error: suite must be given, as suite=…; choose one of: context, generate, local, needle, paper.\n"
    )


def test_configs_of_the_users_own_are_choices_too(called, tmp_path, anchored):
    own = tmp_path / "own"
    for file, text in (
        ("attention/near.yaml", "defaults: [anchored]\nwindow: 8\n"),
        ("model/tiny.yaml", "defaults: [nano]\nname: tiny\nn_layers: 1\n"),
        ("experiment/mine.yaml", "# @package _global_\ndefaults: [override /attention: near]\nstudy: mine\n"),
    ):
        (own / file).parent.mkdir(parents=True)
        (own / file).write_text(text)
    arguments = ["--config-dir", str(own), "experiment=mine", "model=tiny", "attention.stride=4"]
    status, out, _ = called("train", *arguments, "--cfg", "job")
    assert status == 0
    assert "study: mine" in out
    assert "attention:\n  name: anchored\n  window: 8\n  stride: 4\n" in out
    assert "  name: tiny\n  n_layers: 1\n" in out
    status, out, _ = called("plan", "attention=anchored", "window=24", "--cfg", "job", "--resolve")
    assert "attention:\n  name: anchored\n  window: 24\n  stride: 16\n" in out
    status, _, err = called("train", "--config-dir", str(own), "attention=")
    assert status == 2
    assert "choose one of: anchored, dma, " in err
    assert ", near, " in err
    status, _, err = called("train", "--config-dir", str(own), "attention=neer")
    assert ", near, " in err
    assert config_dirs([f"--config-dir={own}", "-m"]) == [CONFIG_DIR, own]


def test_a_config_that_would_never_be_read_is_refused(called, tmp_path):
    (tmp_path / "attention").mkdir()
    (tmp_path / "attention" / "swa.yaml").write_text("name: swa\nwindow: 3\n")
    status, _, err = called("train", "-cd", str(tmp_path), "attention=swa")
    assert status == 2
    assert err == (
        f"error: {tmp_path}/attention/swa.yaml would never be read, for conf/attention/swa.yaml goes by the same name: "
        "give it another one.\n"
    )
    status, _, err = called("train", "--config-dir", str(tmp_path / "nowhere"))
    assert (status, len(err.splitlines())) == (2, 1)
    assert f"'{tmp_path}/nowhere' not found" in err


def test_a_plugin_that_cannot_be_loaded_or_hides_a_config_of_ours_is_one_sentence(called, installed):
    installed("my-package", "mine = no_such_module:Mine")
    status, out, err = called("train", "attention=mha", "--cfg", "job")
    assert (status, "name: mha" in out) == (0, True)
    assert err.startswith("dma_lab: attention=mine of my-package 0.1.0: no_such_module:Mine cannot be imported")
    status, _, err = called("plan", "attention=mine", *TINY, "flops_per_second=1e9")
    assert status == 2
    assert err.splitlines()[-1].startswith("error: attention=mine of my-package 0.1.0: no_such_module:Mine cannot")
    installed("other-package", "hybrid = no_such_module:Mine")
    status, _, err = called("train", "attention=mha")
    assert status == 2
    assert err.splitlines()[-1] == (
        "error: attention=hybrid is dma_lab's own and also one of other-package 0.1.0: give it another name there, or "
        "uninstall that package."
    )


def test_the_configs_are_found_through_the_package():
    assert CONFIG_DIR.resolve() == ROOT / "conf"
    add_user_configs([])
