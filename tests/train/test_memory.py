"""The peak of a run is its own."""

import sys

import pytest
import torch

from dma_lab.commands.plan import main as plan_command
from dma_lab.messages import UserError
from dma_lab.train.hardware import resolve_hardware
from dma_lab.train.memory import forget_peak, peak_bytes, refuse_beyond_memory
from dma_lab.train.plan import plan_run
from tests.made_up import as_given, configuration

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process has one peak for all its life")
def test_what_was_freed_before_a_run_does_not_count_and_what_it_frees_does():
    before = torch.ones(300 * MIB // 4)
    highest = peak_bytes(CPU)
    del before
    forget_peak(CPU)
    started = peak_bytes(CPU)
    assert started < highest - 250 * MIB
    run = torch.ones(300 * MIB // 4)
    del run
    # Linux counts a process's pages per core, in batches: with 64 cores it knows them to some 30 MiB.
    assert 250 * MIB < peak_bytes(CPU) - started < 400 * MIB


def test_more_memory_than_there_is_is_refused_before_it_is_taken(read, monkeypatch, tmp_path):
    settings = read(["model=1.7b", "attention=mha", "trainer.device=cpu"])
    hardware = resolve_hardware(settings.trainer)
    plan = plan_run(settings, settings.model.vocab_size, hardware)
    (tmp_path / "memory.max").write_text("17179869184\n")  # 16 GiB
    monkeypatch.setattr("dma_lab.train.memory._CONTAINER", tmp_path / "memory.max")
    # Weight and Muon's one moment of a matrix in four bytes each; AdamW keeps a second one of the tied embedding, and
    # of the gains, which are too few to show. Gradients come when the activations of a step go.
    states = 4 * (2 * plan.parameters.total + plan.shape.vocab_size * plan.shape.d_model) / 2**30
    with pytest.raises(
        UserError, match=rf"model=1\.7b: training it needs about .* \({states:,.0f} for weights.* has 16;"
    ):
        refuse_beyond_memory(plan, "1.7b", settings.trainer, hardware)
    given = ["model=1.7b", "attention=mha", "trainer.device=cpu"]
    as_given(monkeypatch, given, "plan")
    with pytest.raises(UserError, match=r"or state another machine's executed FLOP/s by flops_per_second\.$"):
        plan_command(configuration(given, "plan"))
    small = read(["model=14k", "trainer.device=cpu"])
    refuse_beyond_memory(plan_run(small, small.model.vocab_size, hardware), "14k", small.trainer, hardware)
