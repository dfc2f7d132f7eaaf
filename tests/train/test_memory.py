"""The peak of a run is its own."""

import sys

import pytest
import torch

from dma_lab.train.memory import forget_peak, peak_bytes

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
    run = torch.ones(100 * MIB // 4)
    del run
    assert 90 * MIB < peak_bytes(CPU) - started < 200 * MIB
