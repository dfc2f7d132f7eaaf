"""Measure on the machine at hand: ``python bench.py kernels``, ``nsa``, ``decode``, ``training``, ``gpu_tests`` or
``faults``; conf/bench_*.yaml holds what each measures, and every setting there is an override.
"""

import importlib
import sys
from typing import Any

from omegaconf import DictConfig

from dma_lab.benchmarks.settings import (
    DecodeSettings,
    FaultsSettings,
    GpuTestsSettings,
    KernelsSettings,
    NsaSettings,
    TrainingSettings,
)
from dma_lab.entry_point import run_entry_point
from dma_lab.phases import phase
from dma_lab.settings import read_settings

SUITES: dict[str, type] = {
    "kernels": KernelsSettings,
    "nsa": NsaSettings,
    "decode": DecodeSettings,
    "training": TrainingSettings,
    "gpu_tests": GpuTestsSettings,
    "faults": FaultsSettings,
}
"""Each is a module of ``dma_lab.benchmarks``, with a function ``bench_<suite>`` that takes these settings."""


def run() -> None:
    suite = sys.argv.pop(1) if len(sys.argv) > 1 else "nothing"
    if suite in ("-h", "--help"):
        print(f"usage: bench SUITE [setting=value …]; SUITE is one of: {', '.join(SUITES)}.")
        print("bench SUITE --help lists its settings; gpu_tests and faults are runs of tests/, so of a checkout.")
        return
    if suite not in SUITES:
        print(f"error: {suite} is no benchmark; choose one of: {', '.join(SUITES)}.", file=sys.stderr)
        raise SystemExit(2)

    def main(config: DictConfig) -> None:
        settings: Any = read_settings(SUITES[suite], config)
        with phase("importing PyTorch"):  # seconds, for which --help and a mistaken setting need not wait
            module = importlib.import_module(f"dma_lab.benchmarks.{suite}")
        getattr(module, f"bench_{suite}")(settings)

    run_entry_point(main, f"bench_{suite}")
