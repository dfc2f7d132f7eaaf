"""Rungs against the paper's table."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dma_lab.model import ModelShape, Transformer
from dma_lab.model.accounting import count_parameters
from dma_lab.model.ladder import reference_parameters

CONF = Path(__file__).resolve().parents[2] / "conf" / "model"
RUNGS = {path.stem: OmegaConf.load(path) for path in sorted(CONF.glob("*.yaml"))}
SHAPE = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff")

# arXiv 2508.02124, table 4, with a feed-forward width of 3 d_model: millions of non-embedding parameters.
PAPER = {"80m": 84.9, "200m": 201.3, "680m": 679.5, "1.7b": 1409.0}
BELOW = {"14k": 0.014, "37k": 0.0372, "83k": 0.0834, "nano": 0.15, "440k": 0.443}
NAMED = BELOW | {"1m": 1.0, "3m": 3.1, "10m": 10.6, "30m": 28.3}


def test_every_rung_of_the_ladder_is_there():
    assert set(RUNGS) == set(PAPER) | set(NAMED)


def test_the_committed_rungs_are_what_their_command_writes(monkeypatch):
    spec = importlib.util.spec_from_file_location("write_rungs", CONF / "write.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for it
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec.loader.exec_module(module)
    assert {rung.name for rung in module.RUNGS} == set(RUNGS)
    for rung in module.RUNGS:
        assert rung.page() == (CONF / f"{rung.name}.yaml").read_text(), "run: python conf/model/write.py"


@pytest.mark.parametrize("rung", RUNGS)
def test_a_built_rung_has_the_published_parameters(rung):
    config = RUNGS[rung]
    shape = {name: config[name] for name in SHAPE}
    with torch.device("meta"):
        model = Transformer(ModelShape(**shape, vocab_size=config.vocab_size, max_seq_len=config.context), "mha")
    non_embedding = count_parameters(model).non_embedding
    assert non_embedding == reference_parameters(**shape)
    assert non_embedding / 1e6 == pytest.approx((PAPER | NAMED)[rung], rel=0.02 if rung in NAMED else 1.2e-3)


@pytest.mark.parametrize("rung", RUNGS)
def test_the_shape_keeps_the_papers_proportions(rung):
    config = RUNGS[rung]
    assert config.n_heads * config.head_dim == config.d_model
    assert config.n_kv_heads * 2 == config.n_heads
    assert config.d_ff == 3 * config.d_model
