"""Imported in the process that scripts are run in forks of, and there alone: imports what they import.

A fork becomes what it stands for. (That process ends without the farewells of the libraries that it froze.)
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path

import matplotlib.pyplot  # noqa: F401
from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

import bench  # noqa: F401
import dma_lab.benchmarks.decode
import dma_lab.benchmarks.faults
import dma_lab.benchmarks.gpu_tests
import dma_lab.benchmarks.kernels
import dma_lab.benchmarks.nsa
import dma_lab.benchmarks.training
import dma_lab.evaluation.evaluate
import dma_lab.exchange.settings
import dma_lab.report.sweep
import dma_lab.report.tuned_file
import dma_lab.report.write
import dma_lab.train.branches
import dma_lab.train.plan_table
import dma_lab.train.probe  # noqa: F401
import evaluate  # noqa: F401
import export  # noqa: F401
import plan  # noqa: F401
import report  # noqa: F401
import train  # noqa: F401
from dma_lab.train.ranks import refuse_unreadable_ranks
from tests.scripts import ROOT, spawn_warm


def run_script(
    script: str,
    arguments: list[str],
    folder: Path,
    said: Path,
    environment: Mapping[str, str],
    before: Callable[[], None] | None,
    server: str,
) -> None:
    """``python SCRIPT ARGUMENTS…`` in ``folder``, which says what it says into files beside ``said``."""
    become(folder, said, environment, server)
    try:
        if before is not None:
            before()
        sys.argv = [script, *arguments]
        runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def become(folder: Path, said: Path | None, environment: Mapping[str, str], server: str) -> None:
    """Take on what a process has from where it was started; what it says goes on where it does if ``said`` is None."""
    atexit.unregister(os._exit)
    for stream, suffix in ((1, ".out"), (2, ".err")) if said else ():
        os.dup2(os.open(said.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    refuse_unreadable_ranks()
    rank_zero_only.rank = _get_rank() or 0  # type: ignore[attr-defined]
    # Processes that it starts are forks of the same one. (Python's own children of a fork server would start another.)
    forkserver._forkserver._forkserver_address = server  # type: ignore[attr-defined]
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
    multiprocessing.get_context = spawn_warm(said)


gc.collect()
gc.freeze()  # or every fork would touch all of it
atexit.register(os._exit, 0)
