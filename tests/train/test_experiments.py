"""Two runs of a comparison differ in the attention alone."""

import dataclasses
from pathlib import Path

import pytest

from dma_lab.attention import registered_backends
from dma_lab.train.rung import rung_name

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


def test_an_override_changes_the_rung_in_what_it_names_alone(read):
    rung, deeper = (read(["model=1m", *more]).model for more in ([], ["model.n_layers=3"]))
    assert deeper == dataclasses.replace(rung, n_layers=3)
    assert rung_name(vars(deeper)) == "1m n_layers=3"


def test_every_backend_has_a_config_that_lists_its_options():
    from omegaconf import OmegaConf

    from dma_lab.attention import attention_options

    for name in registered_backends():
        config = OmegaConf.load(CONF / "attention" / f"{name}.yaml")
        assert set(config) == {"name", *attention_options(name)}
