"""Schedules against their definition, and what is decayed."""

import itertools
import math

import pytest
import torch

from dma_lab.model import ModelShape, Transformer
from dma_lab.train.optim import build_adamw, learning_rate_multiplier
from dma_lab.train.settings import ScheduleSettings


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


def test_matrices_alone_are_decayed():
    shape = ModelShape(
        n_layers=1, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=48, vocab_size=32, max_seq_len=16
    )
    model = Transformer(shape, "dma")
    optimizer = build_adamw(model, learning_rate=1.0, weight_decay=0.5, betas=[0.9, 0.95], eps=1e-8)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim == 2), name
    # With no gradient signal an update is decay alone: lr * weight_decay of the weight.
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.5 if parameter.ndim == 2 else 1.0))
