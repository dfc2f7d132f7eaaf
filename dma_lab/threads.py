"""How many of the CPU's threads compute: one where there is too little work to share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SHARED_FLOPS = 5e9
"""Executed FLOP of a micro-batch, forward and backward, from which threads share the work.

Below, operators end before the other threads have woken, and on a machine that has other work a thread that spins for
one that waits loses most of its time: at 3e8 (rung 14k) two threads on two busy cores took 5 to 9 times as long as one.
"""
_ALL = torch.get_num_threads()
_chosen = _ALL


def use_threads(flops: float, device: torch.device) -> None:
    """Compute with one thread or with all, by ``SHARED_FLOPS``, unless OMP_NUM_THREADS or ``torch.set_num_threads`` has
    said.

    The number decides how sums are rounded. Whether it is one follows from the work alone, so that small runs round
    alike on machines of the same kind, however many cores they have.

    Args:
        flops: of what is computed at a time, forward and backward.
    """
    global _chosen
    by_user = "OMP_NUM_THREADS" in os.environ or torch.get_num_threads() != _chosen
    if device.type == "cuda" or by_user:
        return
    _chosen = 1 if flops < SHARED_FLOPS else _ALL
    torch.set_num_threads(_chosen)


def flops_of(model: torch.nn.Module, tokens: int) -> float:
    """What a forward pass over ``tokens`` counts as for ``use_threads``: as if it were trained on, for its operators
    are of the same size. Six FLOP per parameter and token, without what attention computes between tokens."""
    return 6.0 * sum(weight.numel() for weight in model.parameters()) * tokens


@contextmanager
def threads_for(flops: float, device: torch.device) -> Iterator[None]:
    """``use_threads`` within the context, and as many as before after it."""
    global _chosen
    before = _chosen
    use_threads(flops, device)
    try:
        yield
    finally:
        if _chosen != before:
            _chosen = before
            torch.set_num_threads(before)
