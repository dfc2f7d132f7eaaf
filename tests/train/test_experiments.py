"""Two runs of a comparison differ in the attention alone."""

import dataclasses
from pathlib import Path

import pytest

from dma_lab.attention import registered_backends

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.mark.parametrize("rung", ["nano", "80m"])
def test_chinchilla_experiments_differ_in_the_attention_node_alone(read, rung):
    names = [path.stem for path in sorted((CONF / "experiment").glob("chinchilla_*.yaml"))]
    assert {name.removeprefix("chinchilla_") for name in names} == set(registered_backends())
    resolved = [dataclasses.asdict(read([f"experiment={name}", f"model={rung}"])) for name in names]
    attention = [settings.pop("attention")["name"] for settings in resolved]
    assert sorted(attention) == sorted(registered_backends())
    assert all(settings == resolved[0] for settings in resolved)


def test_a_command_line_override_wins_over_the_experiment(read):
    assert read(["experiment=chinchilla_dma", "attention=mha"]).attention.name == "mha"


def test_every_backend_has_a_config_that_lists_its_options():
    from omegaconf import OmegaConf

    from dma_lab.attention import attention_options

    for name in registered_backends():
        config = OmegaConf.load(CONF / "attention" / f"{name}.yaml")
        assert set(config) == {"name", *attention_options(name)}
