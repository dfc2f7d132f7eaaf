"""The tests that need a GPU, run on this machine's, each one's outcome recorded."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import torch

from dma_lab.benchmarks.outcomes import Outcomes, tests_of_the_checkout
from dma_lab.benchmarks.record import write_record
from dma_lab.benchmarks.settings import GpuTestsSettings
from dma_lab.messages import UserError


def bench_gpu_tests(settings: GpuTestsSettings) -> Path:
    """Run ``pytest -m gpu``; writes a record of every test.

    Raises:
        UserError: outside a checkout, or there is no GPU.
        SystemExit: with pytest's status, after all is recorded, when a test did not pass.
    """
    tests = tests_of_the_checkout("gpu")
    import pytest

    if not torch.cuda.is_available():
        raise UserError("PyTorch finds no CUDA device here, which the tests marked gpu need.")
    outcomes, started = Outcomes(), datetime.now(UTC)
    status = pytest.main(["-m", "gpu", "-n", str(settings.workers), str(tests)], plugins=[outcomes])
    counts = Counter(str(test["outcome"]) for test in outcomes.tests.values())
    path = write_record(settings.results_dir, "gpu_tests", {**counts, "tests": outcomes.tests}, started)
    print(f"recorded in {path}")
    if status:
        raise SystemExit(int(status))
    return path
