"""Schedules against their definition, and what is decayed."""

import itertools
import math

import pytest
import torch

from dma_lab.attention import registered_backends
from dma_lab.model import ModelShape, Transformer
from dma_lab.train.optim import build_optimizers, hidden_matrices, learning_rate_multiplier, optimizer_bytes
from dma_lab.train.settings import AdamWSettings, MuonSettings, ScheduleSettings


def multipliers(name, **fractions):
    schedule = ScheduleSettings(name=name, warmup_steps=None, branches=None, **fractions)
    multiplier = learning_rate_multiplier(schedule, 100)
    return [multiplier(step) for step in range(100)]


def test_wsd_warms_up_stays_and_falls_in_a_line():
    rates = multipliers("wsd", warmup_fraction=0.1, decay_fraction=0.2, final_fraction=0.0)
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10:80] == [1.0] * 70
    falls = [before - after for before, after in itertools.pairwise(rates[79:])]
    assert falls == pytest.approx([1 / 21] * 20)
    assert rates[-1] == pytest.approx(1 / 21), "the last update is small but not wasted"


def test_wsd_before_its_decay_does_not_depend_on_the_budget():
    schedule = ScheduleSettings("wsd", 0.05, 10, 0.2, 0.0, None)
    short, long = (learning_rate_multiplier(schedule, steps) for steps in (100, 400))
    assert short(9) == 1.0 > short(8)
    assert [short(step) for step in range(80)] == [long(step) for step in range(80)]


def test_cosine_halves_in_the_middle_and_ends_at_its_final_fraction():
    rates = multipliers("cosine", warmup_fraction=0.0, decay_fraction=1.0, final_fraction=0.1)
    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step + 1) / 101)) for step in range(100)]
    assert rates == pytest.approx(expected)


SHAPE = ModelShape(n_layers=1, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=48, vocab_size=32, max_seq_len=128)
ADAMW = AdamWSettings("adamw", 1.0, 0.5, [0.9, 0.95], 1e-8, 1.0)
MUON = MuonSettings("muon", 1.0, 1.0, 0.95, 0.5, [0.9, 0.95], 1e-8, 1.0)


@pytest.mark.parametrize("settings", [ADAMW, MUON], ids=lambda settings: settings.name)
def test_matrices_alone_are_decayed(settings):
    model = Transformer(SHAPE, "dma")
    optimizers = build_optimizers(model, settings)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim == 2), name
    # With no gradient signal an update is decay alone: lr * weight_decay of the weight.
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.5 if parameter.ndim == 2 else 1.0))


@pytest.mark.parametrize("backend", sorted(registered_backends()))
@pytest.mark.parametrize("settings", [ADAMW, MUON], ids=lambda settings: settings.name)
def test_what_optimizers_keep_is_known_beforehand(backend, settings):
    model = Transformer(SHAPE, backend)
    optimizers = build_optimizers(model, settings)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    kept = [
        value
        for optimizer in optimizers
        for state in optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    ]
    assert optimizer_bytes(model, settings) == sum(value.nbytes for value in kept)


@pytest.mark.parametrize("backend", sorted(registered_backends()))
def test_muon_has_the_layers_maps_and_adamw_the_rest(backend):
    model = Transformer(SHAPE, backend)
    muon, adamw = build_optimizers(model, MUON)
    updated = [id(p) for optimizer in (muon, adamw) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(updated) == sorted(map(id, model.parameters())), "each parameter once"
    ours = {id(matrix) for matrix in hidden_matrices(model)}
    of_muon = {name for name, parameter in model.named_parameters() if id(parameter) in ours}
    for name, parameter in model.named_parameters():
        maps = name.startswith("layers.") and name.endswith(".weight") and parameter.ndim == 2
        assert (name in of_muon) == (maps and "dt_proj" not in name), name
    assert "layers.0.feed_forward.down_proj.weight" in of_muon
    assert any("attention" in name for name in of_muon)
