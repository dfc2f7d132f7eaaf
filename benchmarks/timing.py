"""Milliseconds that something takes on a GPU, and bars that say how far a suite has come."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

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


def forward_and_total(attend: Callable[..., Tensor], inputs: Sequence[Tensor], d_out: Tensor) -> dict[str, float]:
    """``milliseconds`` of ``attend`` on ``inputs``, and of that with the gradients of all of them."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.no_grad():
        forward = milliseconds(lambda: attend(*inputs))
    return {"forward": forward, "total": milliseconds(lambda: torch.autograd.grad(attend(*inputs), inputs, d_out))}


def progress() -> Progress:
    return Progress(console=Console(stderr=True))
