"""Faults on purpose (tests/faults, the long form), and a record of how many of each kind were survived."""

import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from dma_lab.benchmarks.outcomes import Outcomes, tests_of_the_checkout
from dma_lab.benchmarks.record import write_record
from dma_lab.benchmarks.settings import FaultsSettings


def bench_faults(settings: FaultsSettings) -> Path:
    """Run ``pytest -m faults``; writes a record of the trials of every test, and their sums.

    Raises:
        UserError: outside a checkout.
        SystemExit: with pytest's status, after all is recorded, when a test did not pass.
    """
    tests = tests_of_the_checkout("faults")
    import pytest

    os.environ["FAULTS_SEED"] = str(settings.seed)
    outcomes, started = Outcomes(), datetime.now(UTC)
    status = pytest.main(["-m", "faults", "-n", str(settings.workers), str(tests)], plugins=[outcomes])
    trials = Counter[str]()
    for test in outcomes.tests.values():
        trials.update(test.get("trials", {}))
    counts = Counter(str(test["outcome"]) for test in outcomes.tests.values())
    record = {"seed": settings.seed, "trials": dict(trials), **counts, "tests": outcomes.tests}
    path = write_record(settings.results_dir, "faults", record, started)
    print(f"trials: {', '.join(f'{count:,} {end}' for end, count in trials.items())}")
    print(f"recorded in {path}")
    if status:
        raise SystemExit(int(status))
    return path
