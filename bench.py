"""Measure on the machine at hand: ``python bench.py kernels``, ``nsa``, ``decode``, ``training``, ``gpu_tests`` or
``faults``; conf/bench_*.yaml holds what each measures, and every setting there is an override.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.decode import bench_decode
from benchmarks.faults import record_faults
from benchmarks.gpu_tests import record_gpu_tests
from benchmarks.kernels import bench_kernels
from benchmarks.nsa import bench_nsa
from benchmarks.settings import (
    DecodeSettings,
    FaultsSettings,
    GpuTestsSettings,
    KernelsSettings,
    NsaSettings,
    TrainingSettings,
)
from benchmarks.training import bench_training
from dma_lab.entry_point import run_entry_point
from dma_lab.settings import read_settings

SUITES: dict[str, tuple[Callable[[Any], Path], type]] = {
    "kernels": (bench_kernels, KernelsSettings),
    "nsa": (bench_nsa, NsaSettings),
    "decode": (bench_decode, DecodeSettings),
    "training": (bench_training, TrainingSettings),
    "gpu_tests": (record_gpu_tests, GpuTestsSettings),
    "faults": (record_faults, FaultsSettings),
}

if __name__ == "__main__":
    suite = sys.argv.pop(1) if len(sys.argv) > 1 else "nothing"
    if suite not in SUITES:
        print(f"error: {suite} is no benchmark; choose one of: {', '.join(SUITES)}.", file=sys.stderr)
        raise SystemExit(2)
    measure, settings = SUITES[suite]
    run_entry_point(lambda config: measure(read_settings(settings, config)), f"bench_{suite}")
