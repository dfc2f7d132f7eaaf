"""How tests ended, for the records of suites that are runs of tests."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dma_lab.messages import UserError

if TYPE_CHECKING:
    import pytest

_ROOT = Path(__file__).resolve().parents[2]


def tests_of_the_checkout(room: str) -> Path:
    """tests/ROOM of the checkout that this code is of, whose tests can be imported from then on.

    Raises:
        UserError: this code is of no checkout: it was installed from a wheel, which holds no tests.
    """
    tests = _ROOT / "tests" / room
    if not tests.is_dir():
        raise UserError(
            f"This suite runs the tests in tests/{room}, which dma_lab as it is installed here has not: clone the "
            "repository and run it there."
        )
    if str(_ROOT) not in sys.path:
        sys.path.insert(0, str(_ROOT))  # tests import one another as tests.…
    return tests


class Outcomes:
    """A pytest plugin that keeps how each test ended, how long it took, and the trials that it counted, if any."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: "pytest.TestReport") -> None:
        test = self.tests.setdefault(report.nodeid, {"outcome": "not finished", "seconds": 0.0})
        test["seconds"] = round(float(test["seconds"]) + report.duration, 2)
        test |= {name: value for name, value in report.user_properties if name == "trials"}
        if report.when == "call" and report.outcome == "passed":
            test["outcome"] = "passed"
        elif report.outcome != "passed":
            test |= {"outcome": report.outcome, "reason": _reason(report)}

    def pytest_collectreport(self, report: "pytest.CollectReport") -> None:
        if report.failed:
            self.tests[report.nodeid] = {"outcome": "not collected", "reason": _reason(report)}


def _reason(report: "pytest.TestReport | pytest.CollectReport") -> str:
    lines = [line[1:] for line in report.longreprtext.splitlines() if line.startswith("E ")]
    return " ".join((" ".join(lines) or report.longreprtext[-500:]).split())
