"""Two runs of a comparison differ in the attention alone."""

import dataclasses
from pathlib import Path

import pytest

from dma_lab.attention import registered_backends
from dma_lab.messages import print_once
from dma_lab.train.hardware import resolve_hardware
from dma_lab.train.plan import matched_model, plan_run
from dma_lab.train.reading import read_settings
from dma_lab.train.rung import rung_name
from tests.made_up import configuration

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.mark.parametrize("rung", ["nano", "80m"])
def test_chinchilla_experiments_differ_in_the_attention_node_alone(read, rung):
    names = [path.stem for path in sorted((CONF / "experiment").glob("chinchilla_*.yaml"))]
    assert {name.removeprefix("chinchilla_") for name in names} == set(registered_backends())
    resolved = [dataclasses.asdict(read([f"experiment={name}", f"model={rung}"])) for name in names]
    attention = [settings.pop("attention")["name"] for settings in resolved]
    assert sorted(attention) == sorted(registered_backends())
    assert all(settings == resolved[0] for settings in resolved)


def test_the_papers_own_setting_is_its_table(read):
    """arXiv 2508.02124, table 4, the first row."""
    own = {name: read(["experiment=paper", f"attention={name}"]) for name in ("mha", "dma", "swa", "mla", "nsa")}
    plans = {name: plan_run(settings, 32768, resolve_hardware(settings.trainer)) for name, settings in own.items()}
    for name, settings in own.items():
        model, optimizer, trainer = settings.model, settings.optimizer, settings.trainer
        assert (model.n_layers, model.d_model, model.n_heads, model.n_kv_heads, model.head_dim) == (12, 768, 6, 3, 128)
        assert (optimizer.name, optimizer.learning_rate, settings.schedule.name) == ("adamw", 3e-3, "wsd")
        assert (plans[name].steps, trainer.tokens_per_step, trainer.context) == (13_500, 131_072, 2048)
        assert plans[name].parameters.non_embedding == pytest.approx(84.9e6, rel=5e-3)
        assert settings.data.name == "smollm_corpus"
    built = {name: matched_model(settings, 32768).blocks[0].attention for name, settings in own.items()}
    assert {name: built[name].window for name in ("dma", "swa", "nsa")} == {"dma": 1024, "swa": 1024, "nsa": 512}
    assert (built["dma"].score, built["dma"].recency, built["dma"].recent, built["dma"].learned) == (
        "exp",
        None,
        0,
        True,
    )
    assert (built["nsa"].block, built["nsa"].selected_block, built["nsa"].selected_blocks) == (32, 64, 16)
    assert built["mla"].kv_rank == 192


@pytest.mark.parametrize(("rung", "rate", "batch"), [("200m", 2e-3, 196_608), ("680m", 1e-3, 393_216)])
def test_the_papers_setting_of_another_rung_is_the_tables_but_for_tokens_which_is_said(rung, rate, batch, capsys):
    """Table 4, the rows below: what it says of tokens is 20,800 and 35,000 steps."""
    print_once.cache_clear()
    chosen = ["experiment=paper", f"model={rung}"]
    for tokens, said in (([], True), (["tokens=4089446400"], False), (["tokens=null"], False)):
        overrides = [*chosen, *tokens]
        settings = read_settings(configuration(overrides), overrides)
        assert (settings.optimizer.learning_rate, settings.trainer.tokens_per_step) == (rate, batch)
        found = capsys.readouterr().err
        assert ("tokens=1769472000 are experiment=paper's, whatever the model: " in found) == said
    for other in (["experiment=paper"], ["experiment=paper", "model=80m"], ["experiment=chinchilla", "model=1m"]):
        read_settings(configuration(other), other)
    assert not capsys.readouterr().err


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
