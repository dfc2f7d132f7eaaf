"""The command of a run composes to the run's own config, on a machine whose text lies elsewhere."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from dma_lab.report.collect import read_run
from dma_lab.report.command import command_of
from dma_lab.train.branches import plan_branches
from dma_lab.train.hardware import resolve_hardware
from dma_lab.train.identity import run_name
from dma_lab.train.reading import read_settings
from tests.made_up import configuration
from tests.report.conftest import vouch

ELSEWHERE = {"DATA": "/mnt/of another/text", "RUNS": "/mnt/runs"}
LEFT_OUT = {"output_dir", "logger"}
STUDY = [
    "experiment=chinchilla",
    "window=512",
    "model.vocab_size=8192",
    "trainer.context=2048",
    "data.allow_repeat=true",
]
TEXT = ["data=local", "data.path=/home/me/wiki/train", "data.validation_path=/home/me/wiki/valid.jsonl.xz"]
KINDS = {
    "branch": [*STUDY, *TEXT, "model=3m", "attention=dma", "schedule.branches=[0.25,0.5,1]", "seed=4"],
    "tokens_per_parameter": [*STUDY, *TEXT, "model=1m", "attention=nsa", "tokens_per_parameter=80", "match=flops"],
    "slope": [*STUDY, *TEXT, "attention=dma", "attention.recency=slope", "attention.score_rate=10.0"],
    "control": [*STUDY, "attention=swa_sinks", "data.cache_dir=/home/me/cache", "output_dir=/home/me/runs"],
    "tuned": [*STUDY, "attention=dma", "tuned=TUNED"],
    "shape": ["model=14k", "model.n_layers=3", "attention=mha", "tokens=100000", "study=wide", "optimizer=adamw"],
    "cosine": ["attention=mla", "schedule=cosine", "flops=1e13", "init_from=/home/me/runs/study-nano-mla-s0-12345678"],
    "paths": ["data=local", "data.path=[/home/me/a b/*.jsonl,'/home/me/it\\'s $x, {1}']", "data.pattern='**/*.rst'"],
    "recall": [
        "experiment=mqar_small",
        "attention=mqar_mha",
        "data.size.pairs=[2,8]",
        "model.d_model=128",
        "model.head_dim=128",
    ],
    "recall at a window": ["experiment=mqar", "attention=mqar_dma", "data.size={length: 2048, pairs: 512}", "seed=2"],
    "default recall": ["experiment=mqar", "hydra.mode=RUN"],
}


@pytest.fixture(scope="module")
def tuned_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("tuned") / "tuned.yaml"
    attention = read_settings(configuration([*STUDY, "attention=dma"])).attention.written()
    point = {"parameters": 1e5, "multiplier": 1.5, "interval": None}
    choice = {"options": {"score_rate": 10.0}, "tried": 2, "trainings": 4, "said": "chosen"}
    backends = [
        {"overrides": "-", "attention": own, "points": [point], "trainings": 2, "notes": [], "choice": found}
        for own, found in ((attention, choice), (attention | choice["options"], None))
    ]
    file.write_text(yaml.safe_dump({"optimizer": "muon", "backends": backends}))
    return file


def comparable(settings):
    written = {name: value for name, value in settings.written().items() if name not in LEFT_OUT}
    written["data"] = {name: value for name, value in written["data"].items() if name != "cache_dir"}
    return written


@pytest.fixture
def run_of(write, tmp_path):
    """The run of settings as training writes them."""

    def make(written, label):
        path = write(tmp_path, label, params_non_embedding=1_000_000, seed=written["seed"])
        (path / "config.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
        vouch(path)
        return read_run(path, "run")

    return make


def told(command):
    """The words that a shell makes of it there."""
    shell = subprocess.run(["bash", "-c", f'printf "%s\\0" {command}'], env=os.environ | ELSEWHERE, capture_output=True)
    return shell.stdout.decode().rstrip("\0").split("\0")


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_composes_to_the_runs_config(kind, run_of, tuned_file):
    settings = read_settings(configuration([part.replace("TUNED", str(tuned_file)) for part in KINDS[kind]]))
    if settings.schedule.branches:
        settings = plan_branches(settings, 8192, resolve_hardware(settings.trainer))[1].settings
        assert (settings.tokens_per_parameter, settings.schedule.branches) == (10, None)
    assert (settings.tuned is not None) == (kind == "tuned")
    command = command_of(run_of(settings.written(), settings.attention.label))
    assert "/home/me" not in command
    assert ("attention.score_rate=10.0" in command) == (kind in ("tuned", "slope")), (
        "what the file chose is written out"
    )
    python, script, *overrides = told(command)
    assert (python, script) == ("python", "train.py")
    again = read_settings(configuration(overrides))
    expected = comparable(settings)
    for name in ("path", "validation_path"):
        if isinstance(path := expected["data"].get(name), list):
            expected["data"][name] = [part.replace("/home/me", ELSEWHERE["DATA"]) for part in path]
        elif path:
            expected["data"][name] = path.replace("/home/me/wiki", ELSEWHERE["DATA"])
    if settings.init_from:
        expected["init_from"] = f"/mnt/runs/{Path(settings.init_from).name}"
    assert comparable(again) == expected
    assert run_name(again, "data", "bf16") == run_name(settings, "data", "bf16")


def test_the_command_says_what_conf_does_not(run_of):
    settings = read_settings(configuration(["experiment=chinchilla", "model=14k", "attention=dma", "seed=3"]))
    assert command_of(run_of(settings.written(), "dma")) == (
        "python train.py experiment=chinchilla model=14k attention=dma optimizer.learning_rate=0.0128 "
        "trainer.tokens_per_step=512 seed=3"
    )


def test_there_is_no_command_for_a_setting_that_is_no_more(run_of):
    written = read_settings(configuration([])).written()
    assert command_of(run_of(written, "dma"))
    written["trainer"]["prefetch"] = 3
    assert command_of(run_of(written, "dma")) == ""
