"""How tests ended, for the records of suites that are runs of tests."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


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
