"""Faults on purpose (tests/faults, the long form), and a record of how many of each kind were survived."""

import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.outcomes import Outcomes
from benchmarks.record import write_record
from benchmarks.settings import FaultsSettings

_TESTS = Path(__file__).resolve().parents[1] / "tests" / "faults"


def record_faults(settings: FaultsSettings) -> Path:
    """Run ``pytest -m faults``; writes a record of the trials of every test, and their sums.

    Raises:
        SystemExit: with pytest's status, after all is recorded, when a test did not pass.
    """
    import pytest

    os.environ["FAULTS_SEED"] = str(settings.seed)
    outcomes, started = Outcomes(), datetime.now(UTC)
    status = pytest.main(["-m", "faults", "-n", str(settings.workers), str(_TESTS)], plugins=[outcomes])
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
