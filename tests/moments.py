"""Signals that a process sends at a moment of its own work: as a function is called for the n-th time."""

import functools
import importlib
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any


def at_call(function: str, number: int, do: Callable[[], object]) -> None:
    """Have ``do`` called before call ``number`` of ``function``, as in ``dma_lab.train.runs:RunDirectory.keep``."""
    module, path = function.split(":")
    *parents, name = path.split(".")
    owner = functools.reduce(getattr, parents, importlib.import_module(module))
    original, calls = getattr(owner, name), itertools.count(1)

    @functools.wraps(original)
    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            do()
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def signal_group_at(function: str, number: int, sent: int) -> None:
    """Have this process, and those that it starts, get the signal ``sent``, as Ctrl-C reaches them."""
    os.setsid()

    def send() -> None:
        os.killpg(os.getpgrp(), sent)
        time.sleep(0.3)  # whoever dies of it is dead

    at_call(function, number, send)


def signal_at(function: str, number: int, sent: int, to: str) -> None:
    """Have this process (``to`` is ``first``), those that it started by then (``others``), or ``both`` get ``sent``."""

    def send() -> None:
        others = [process.pid for process in multiprocessing.active_children() if process.pid is not None]
        pids = {"first": [os.getpid()], "others": others, "both": [*others, os.getpid()]}[to]
        for pid in pids:
            os.kill(pid, sent)

    at_call(function, number, send)
