"""Milliseconds that something takes on a GPU, and bars that say how far a suite has come."""

import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from dma_lab.messages import UserError

Key = TypeVar("Key", bound=Hashable)
_ROUNDS = 5
_TURN = 50.0  # milliseconds of work that a turn times
_RUN_IN = 3  # times as much goes before it, so that the clock is that of this work under steady load
_LAUNCHES = 60


def require_gpu() -> None:
    if not torch.cuda.is_available():
        raise UserError("this benchmark measures GPU kernels, and PyTorch finds no CUDA device here.")


def milliseconds(function: Callable[[], Any]) -> float:
    """Median time of a replay of ``function`` captured as a CUDA graph: the device's work, not Python's launching."""
    from triton.testing import do_bench_cudagraph

    function()  # compiled, and its handles made, before the capture
    torch.cuda.synchronize()
    return float(do_bench_cudagraph(function, rep=60, return_mode="median"))


def in_turns(functions: Mapping[Key, Callable[[], Any]], bar: Progress, description: str) -> dict[Key, float]:
    """Median time of each function's replay as a CUDA graph; every round times each once, in a newly drawn order.

    For what is compared: work that draws the full power of the card is some per cent slower or faster with what ran
    before it, for a tenth of a second, and with how warm the card has become.
    """
    graphs = {name: _captured(function) for name, function in functions.items()}
    times: dict[Key, list[float]] = {name: [] for name in functions}
    order, shuffle = list(functions), random.Random(0).shuffle
    for _ in bar.track(range(_ROUNDS), description=description):
        shuffle(order)
        for name in order:
            graph, calls = graphs[name]
            for _ in range(_RUN_IN):
                graph.replay()
            times[name].append(_elapsed(graph.replay) / calls)
    return {name: statistics.median(turns) for name, turns in times.items()}


def _captured(function: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of as many calls as a turn has time for, and their number."""
    with torch.cuda.stream(torch.cuda.Stream()):
        function()  # compiled, and its handles made, before it is timed and captured
        calls = max(1, int(_TURN / _elapsed(function)))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                function()
    return graph, calls


def _elapsed(function: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def launch_milliseconds(function: Callable[[], Any]) -> float:
    """What Python takes to hand one call of ``function`` to an idle GPU, which need not have finished by then.

    The lower quartile of many: other work on the machine's cores can only add to it.
    """
    times = []
    for _ in range(_LAUNCHES):
        torch.cuda.synchronize()
        began = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - began))
    torch.cuda.synchronize()
    return statistics.quantiles(times, n=4)[0]


def forward_and_total(attend: Callable[..., Tensor], inputs: Sequence[Tensor], d_out: Tensor) -> dict[str, float]:
    """``milliseconds`` of ``attend`` on ``inputs``, and of that with the gradients of all of them."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.no_grad():
        forward = milliseconds(lambda: attend(*inputs))
    return {"forward": forward, "total": milliseconds(lambda: torch.autograd.grad(attend(*inputs), inputs, d_out))}


def progress() -> Progress:
    return Progress(console=Console(stderr=True))
