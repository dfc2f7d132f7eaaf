"""How many of the CPU's threads a run computes with: one where it has too little work to share."""

import os

import torch

from dma_lab.train.hardware import Hardware
from dma_lab.train.plan import RunPlan

SHARED_FLOPS = 5e9
"""Executed FLOP of a micro-batch, forward and backward, from which threads share the work.

Below, operators end before the other threads have woken, and on a machine that has other work a thread that spins for
one that waits loses most of its time: at 3e8 (rung 14k) two threads on two busy cores took 5 to 9 times as long as one.
"""
_ALL = torch.get_num_threads()
_chosen = _ALL


def use_threads(plan: RunPlan, hardware: Hardware) -> None:
    """Compute the run of ``plan`` with one thread or with all, by ``SHARED_FLOPS``, unless OMP_NUM_THREADS or
    ``torch.set_num_threads`` has said.

    The number decides how sums are rounded. Whether it is one follows from the settings alone, so that small runs round
    alike on machines of the same kind, however many cores they have.
    """
    global _chosen
    by_user = "OMP_NUM_THREADS" in os.environ or torch.get_num_threads() != _chosen
    if hardware.device.type == "cuda" or by_user:
        return
    flops = plan.flops.executed / (plan.steps * plan.accumulate)
    _chosen = 1 if flops < SHARED_FLOPS else _ALL
    torch.set_num_threads(_chosen)
