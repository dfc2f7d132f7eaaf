"""Milliseconds that something takes on a GPU, and bars that say how far a suite has come."""

from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from dma_lab.messages import UserError


def require_gpu() -> None:
    if not torch.cuda.is_available():
        raise UserError("this benchmark measures GPU kernels, and PyTorch finds no CUDA device here.")


def milliseconds(function: Callable[[], Any]) -> float:
    """Median time of a replay of ``function`` captured as a CUDA graph: the device's work, not Python's launching."""
    from triton.testing import do_bench_cudagraph

    function()  # compiled, and its handles made, before the capture
    torch.cuda.synchronize()
    return do_bench_cudagraph(function, rep=60, return_mode="median")


def eager_milliseconds(function: Callable[[], Any]) -> float:
    """Median time of a call as Python makes it."""
    from triton.testing import do_bench

    return do_bench(function, warmup=20, rep=60, return_mode="median")


def progress() -> Progress:
    return Progress(console=Console(stderr=True))
