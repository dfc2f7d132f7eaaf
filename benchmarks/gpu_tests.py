"""The tests that need a GPU, run on this machine's, each one's outcome recorded."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig

from benchmarks.record import write_record
from dma_lab.messages import UserError

if TYPE_CHECKING:
    import pytest

_TESTS = Path(__file__).resolve().parents[1] / "tests" / "gpu"


class Outcomes:
    """A pytest plugin that keeps how each test ended and how long it took."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, str | float]] = {}

    def pytest_runtest_logreport(self, report: "pytest.TestReport") -> None:
        test = self.tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        test["seconds"] = round(float(test["seconds"]) + report.duration, 2)
        if report.outcome != "passed":
            test |= {"outcome": report.outcome, "reason": _reason(report)}

    def pytest_collectreport(self, report: "pytest.CollectReport") -> None:
        if report.failed:
            self.tests[report.nodeid] = {"outcome": "not collected", "reason": _reason(report)}


def _reason(report: "pytest.TestReport | pytest.CollectReport") -> str:
    lines = [line[1:] for line in report.longreprtext.splitlines() if line.startswith("E ")]
    return " ".join((" ".join(lines) or report.longreprtext[-500:]).split())


def record_gpu_tests(config: DictConfig) -> Path:
    """Run ``pytest -m gpu``; writes a record of every test.

    Raises:
        UserError: there is no GPU.
        SystemExit: with pytest's status, after all is recorded, when a test did not pass.
    """
    import pytest

    if not torch.cuda.is_available():
        raise UserError("PyTorch finds no CUDA device here, which the tests marked gpu need.")
    outcomes, started = Outcomes(), datetime.now(UTC)
    status = pytest.main(["-m", "gpu", "-n", str(config.workers), str(_TESTS)], plugins=[outcomes])
    counts = Counter(str(test["outcome"]) for test in outcomes.tests.values())
    path = write_record(config.results_dir, "gpu_tests", {**counts, "tests": outcomes.tests}, started)
    print(f"recorded in {path}")
    if status:
        raise SystemExit(int(status))
    return path
