"""Faults on purpose, many of each kind, and how they are counted: every trial ends in one of seven ways.

A test takes the ``trials`` fixture, tries what it is about as often as its form asks for, and counts every trial. It
fails at its end if any trial ended badly, and says for each way of going wrong the shortest fault that led there.

A short form of every kind is part of the CPU suite. The long form is marked ``faults``: `make test-faults` runs it and
writes the counts to benchmarks/results/faults-*.json, with the machine, the versions and the commit.
"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dma_lab.messages import UserError
from tests.faults.results import difference, results_in
from tests.faults.scripts import HANGS, TINY, Command, FaultyScripts
from tests.made_up import write_corpus
from tests.scripts import Scripts

SURVIVED, REFUSED, LATE = "survived", "refused", "late"
SILENTLY_WRONG, TRACEBACK, TOO_SLOW, HUNG = "silently wrong", "traceback", "too slow", "hung"
ENDS = (SURVIVED, REFUSED, LATE, SILENTLY_WRONG, TRACEBACK, TOO_SLOW, HUNG)
"""The right result; one sentence that says what is wrong; a signal that came when nothing was left to stop; another
result than the right one, without a word; anything else that a program says when it ends (a traceback, several
sentences); an end after more time than was given; none, until it was killed."""
GOOD = (SURVIVED, REFUSED, LATE)

_SHOWN = 20


class WrongResultError(Exception):
    """A trial's result is not the right one."""


class Trials:
    """Counts of one kind of fault, each a ``fault`` (what was done) and how that ended."""

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds = seconds
        """Of processor time, which a busy machine does not stretch: more than a trial may take in this process."""
        self.ends: Counter[str] = Counter()
        self.bad: dict[str, str] = {}
        """For each way of going wrong the shortest fault that led there."""

    def count(self, fault: str, end: str, why: str = "") -> None:
        assert end in ENDS
        self.ends[end] += 1
        if end not in GOOD:
            way = f"{end}: {why}" if why else end
            self.bad[way] = min(self.bad.get(way, fault), fault, key=len)

    def try_here(self, fault: str, trial: Callable[[], object], must_name: tuple[str, ...] = ()) -> None:
        """Count ``trial`` called in this process: it returns, raises ``WrongResultError``, or raises a UserError.

        Args:
            must_name: words of which a UserError has to hold at least one; the settings that were set wrong.
        """
        started = time.process_time()
        try:
            trial()
            end, why = SURVIVED, ""
        except UserError as error:
            end, why = self._of_sentence(str(error), must_name)
        except WrongResultError as wrong:
            end, why = SILENTLY_WRONG, str(wrong)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            end, why = TRACEBACK, f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
        if time.process_time() - started > self.seconds:
            end, why = TOO_SLOW, f"then {end} {why}"
        self.count(fault, end, why)

    def count_process(
        self, fault: str, process: subprocess.CompletedProcess[str], is_right: Callable[[], bool] | None = None
    ) -> None:
        """Count one of the scripts, run to its end: status 0 with the right result, or 1 or 2 after one sentence.

        Args:
            is_right: whether what it left is right; asked for status 0 alone, where None takes it for right.
        """
        end, why = self.of_process(process)
        if end == SURVIVED and is_right is not None and not is_right():
            end = SILENTLY_WRONG
        self.count(fault, end, why)

    def of_process(self, process: subprocess.CompletedProcess[str]) -> tuple[str, str]:
        """How a script ended, status 0 taken for the right result, and why it did where that is bad."""
        if process.returncode == HANGS:
            return HUNG, (process.stderr.splitlines() or [""])[-1]
        errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
        if "Traceback (most recent call last)" in process.stderr:
            return TRACEBACK, process.stderr.splitlines()[-1]
        if process.returncode in (1, 2) and len(errors) == 1:
            return self._of_sentence(errors[0], ())
        if process.returncode == 0:
            return SURVIVED, ""
        return TRACEBACK, f"status {process.returncode}, {len(errors)} sentences"

    def of_cut(self, process: subprocess.CompletedProcess[str], sent: int) -> tuple[str, str]:
        """How a script ended to which the signal ``sent`` was sent, or to another process of its run."""
        if process.returncode == -signal.SIGKILL == -sent:
            return SURVIVED, ""
        if process.returncode == 128 + sent:
            cut = "Traceback" in process.stderr
            return (TRACEBACK, process.stderr.splitlines()[-1]) if cut else (SURVIVED, "")
        end, why = self.of_process(process)
        return (LATE if end == SURVIVED else end), why

    @staticmethod
    def _of_sentence(said: str, must_name: tuple[str, ...]) -> tuple[str, str]:
        if not said.endswith(".") or any(not character.isprintable() for character in said):
            return TRACEBACK, f"not one sentence: {said!r}"
        if must_name and not any(name in said for name in must_name):
            return TRACEBACK, f"names none of {must_name}: {said}"
        return REFUSED, ""

    def summary(self) -> dict[str, int]:
        return {"tried": self.ends.total()} | {end: self.ends[end] for end in ENDS}

    def complaint(self) -> str:
        """What went wrong, a line per way; empty where nothing did."""
        ways = [f"  {way}\n    {fault}" for way, fault in list(self.bad.items())[:_SHOWN]]
        more = [f"  … and {len(self.bad) - _SHOWN} ways more"] if len(self.bad) > _SHOWN else []
        return "\n".join([f"{self.summary()}", *ways, *more]) if ways else ""


def worst(ends: list[tuple[str, str]], folder: Path) -> tuple[str, str]:
    """Of the ends of a trial's processes in ``folder`` the worst, and why; a good one is the first's."""
    end, why = next((found for found in ends if found[0] not in GOOD), ends[0])
    return end, why.replace(str(folder), "")


def short_and_long(short: int, long: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "number", [pytest.param(short, id="short"), pytest.param(long, id="long", marks=pytest.mark.faults)]
    )


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> Iterator[Trials]:
    """Counts this test's trials, hands them to the record, and fails it if any of them ended badly."""
    counted = Trials()
    yield counted
    request.node.user_properties.append(("trials", counted.summary()))
    assert counted.ends.total(), "nothing was tried"
    complaint = counted.complaint()
    assert not complaint, complaint


@pytest.fixture
def draw() -> random.Random:
    """What a test draws its faults with: from FAULTS_SEED, which the record of a long run holds; 0 unless set."""
    return random.Random(int(os.environ.get("FAULTS_SEED", "0")))


@pytest.fixture(scope="session")
def scripts(scripts: Scripts) -> FaultyScripts:
    return FaultyScripts(scripts)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A run of a moment."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, documents=40)
    return Command("train", TINY).with_(data__path=str(folder / "documents.jsonl"))


@pytest.fixture(scope="session")
def uncut(scripts: FaultyScripts, tiny: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory in which the tiny run came to its end, undisturbed: its runs/ and its cache/."""
    folder = tmp_path_factory.mktemp("uncut")
    process = scripts.run(tiny, folder)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="session")
def expected(uncut: Path) -> dict[str, dict[str, Any]]:
    """What the tiny run comes to, for ``results.difference``."""
    return results_in(uncut)


@pytest.fixture
def workplace(uncut: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes working directories in which the data is prepared."""
    numbers = itertools.count(1)

    def made() -> Path:
        folder = tmp_path / str(next(numbers))
        shutil.copytree(uncut / "cache", folder / "cache")
        return folder

    return made


@pytest.fixture
def continued(scripts: FaultyScripts) -> Callable[..., tuple[str, str]]:
    """Gives the command once more, undisturbed, and says how that ended: it has to come to what is expected."""

    def once_more(command: Command, folder: Path, expected: dict[str, dict[str, Any]]) -> tuple[str, str]:
        process = scripts.run(command, folder)
        if process.returncode != 0 or "Traceback" in process.stderr:
            return TRACEBACK, f"continued: {(process.stderr.splitlines() or [''])[-1]}"
        wrong = difference(folder, expected)
        return (SILENTLY_WRONG, f"continued: {wrong}") if wrong else (SURVIVED, "")

    return once_more


@pytest.fixture
def new_trials() -> type[Trials]:
    return Trials


@pytest.fixture
def wrong() -> type[WrongResultError]:
    """What a trial raises whose result is not the right one."""
    return WrongResultError
