"""Sweep files: each runs as an agent runs it, and enumerates what its Hydra twin enumerates."""

import importlib.util
import itertools
import json
import warnings
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

from dma_lab.train.hardware import resolve_hardware
from dma_lab.train.plan import plan_run
from dma_lab.train.reading import read_settings
from tests.made_up import TINY, configuration

ROOT = Path(__file__).resolve().parents[2]
KINDS = sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml"))
SIZES = {
    "chinchilla": 30,
    "isoflop": 45,
    "learning_rate": 25,
    "overtraining": 25,
    "seeds": 25,
    "study": 100,
    "study_gpu": 75,
    "tune": 140,
    "tune_dma": 192,
}
EMBEDDED_TOKENS = 5_000_000
"""What the source text of every Python's standard library comes to, at least."""


def wandb_points(kind: str) -> list[dict]:
    parameters = load_sweep_config(str(ROOT / "sweeps" / f"{kind}.yaml"))["parameters"]
    values = [node["values"] if "values" in node else [node["value"]] for node in parameters.values()]
    return [dict(zip(parameters, point, strict=True)) for point in itertools.product(*values)]


def twin_points(kind: str) -> list[dict]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", ["experiment=chinchilla", f"sweep={kind}"], return_hydra_config=True)
    params = [f"{name}={values}" for name, values in config.hydra.sweeper.params.items()]
    overrides = OverridesParser.create().parse_overrides(["experiment=chinchilla", *params])
    (points,) = BasicSweeper.split_arguments(overrides, None)
    parse = OverridesParser.create().parse_override
    return [{parse(text).key_or_group: parse(text).value() for text in point} for point in points]


def agent_command(kind: str, point: dict) -> list[str]:
    """The argument list that wandb's agent fills the file's ``command`` with."""
    config = load_sweep_config(str(ROOT / "sweeps" / f"{kind}.yaml"))
    parts = create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})
    parts |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [config["program"]]}
    chunks = create_sweep_command(config["command"])
    return [word for chunk in chunks for word in (parts[chunk[2:-1]] if chunk.startswith("${") else [chunk])]


def violations(config: dict) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it speaks to pydantic as to version 1
        from sweeps.config.cfg import schema_violations_from_proposed_config
    return schema_violations_from_proposed_config(config)


def test_the_committed_files_are_what_their_command_writes():
    spec = importlib.util.spec_from_file_location("write_sweeps", ROOT / "sweeps" / "write.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert {path.stem for path in (ROOT / "conf" / "sweep").glob("*.yaml")} == set(KINDS)
    for kind in KINDS:
        committed = (ROOT / "sweeps" / f"{kind}.yaml").read_text()
        assert module.sweep_file(kind) == committed, "run: python sweeps/write.py"


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_file_keeps_to_the_schema_of_wandbs_sweep_server(kind):
    config = load_sweep_config(str(ROOT / "sweeps" / f"{kind}.yaml"))
    assert violations(config) == []
    assert "${args_no_hyphens}" in config["command"], "train.py takes Hydra's overrides"
    assert violations(config | {"method": "gird"})
    assert violations(config | {"metric": {"gaol": "minimize"}})
    assert violations(config | {"parameters": {"seed": {"vales": [0, 1]}}})


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_file_and_its_twin_enumerate_the_same_points(kind):
    points = wandb_points(kind)
    key = lambda point: json.dumps(point, sort_keys=True)  # noqa: E731
    assert sorted(points, key=key) == sorted(twin_points(kind), key=key)
    assert len({key(point) for point in points}) == SIZES[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_every_point_is_a_run_that_the_entry_point_accepts_and_differs_from_the_others(kind):
    seen, corpora = set(), []
    for point in wandb_points(kind):
        settings = read_settings(configuration(agent_command(kind, point)[3:]))
        assert settings.logger.name == "wandb"
        assert settings.attention.name == point["attention"]
        assert settings.model.name == point["model"]
        seen.add(repr(settings))
        if point["attention"] == "mha":  # the other backends of a rung see the same tokens
            plan = plan_run(settings, settings.model.vocab_size, resolve_hardware(settings.trainer))
            longest = plan.tokens * max(settings.schedule.branches or [1])
            there = EMBEDDED_TOKENS if settings.data.source == "stdlib" else settings.data.max_tokens or 0
            assert longest < there or settings.data.allow_repeat
        corpora.append(settings.data)
    assert len(seen) == SIZES[kind]
    assert all(corpus == corpora[0] for corpus in corpora), "losses of several corpora or vocabularies do not compare"


def test_the_command_line_of_an_agent_trains_its_point(scripts, tmp_path):
    corpus = tmp_path / "text.jsonl"
    corpus.write_text(
        "".join(json.dumps({"text": f"the {n} th of many short texts. " * 20}) + "\n" for n in range(300))
    )
    data = ["data=local", f"data.path={corpus}", f"data.cache_dir={tmp_path}/cache", "data.validation_fraction=0.1"]
    point = {"experiment": "chinchilla", "attention": "mla", "model": "nano"}
    env, python, script, *arguments = agent_command("chinchilla", point)
    assert (env, python) == ("/usr/bin/env", "python")
    result = scripts.run(script, [*arguments, *TINY, "tokens=2048", *data, f"output_dir={tmp_path}/runs"])
    assert result.returncode == 0, result.stderr
    (summary,) = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/summary.json")]
    assert (summary["status"], summary["attention"], summary["model"]) == ("finished", "mla", "nano")
    assert summary["study"] == "chinchilla"
