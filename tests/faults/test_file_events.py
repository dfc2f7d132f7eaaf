"""A run that is killed, signalled or failed by the system at a file event, and then continued: the same to the bit."""

import errno
import shutil
import signal
from collections.abc import Callable

import pytest

from tests.faults.conftest import SILENTLY_WRONG, short_and_long, worst
from tests.faults.file_events import Fault
from tests.faults.results import difference

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.ESTALE)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(scope="module")
def events(scripts, tiny, expected, tmp_path_factory) -> int:
    """File events of the uninterrupted run from the data's preparation on, which counting does not change."""
    folder = tmp_path_factory.mktemp("counted")
    started = scripts.start(tiny, folder, Fault())
    assert started.ended().returncode == 0
    assert difference(folder, expected) == ""
    assert started.events > 100
    return started.events


@pytest.fixture
def cut_and_continued(scripts, tiny, expected, trials, continued, draw, workplace) -> Callable[..., None]:
    """Counts a trial: the faults one after the other, each met by the same command; then that command alone."""

    def tried(*faults: Fault) -> None:
        folder = workplace()
        if draw.random() < 0.2:
            shutil.rmtree(folder / "cache")
        what, ends = " then ".join(map(str, faults)), []
        for fault in faults:
            process = scripts.run(tiny, folder, fault)
            ends.append(trials.of_process(process) if fault.is_error else trials.of_cut(process, fault.number))
            if process.returncode == 0 and (wrong := difference(folder, expected)):
                ends.append((SILENTLY_WRONG, wrong))
        ends.append(continued(tiny, folder, expected))
        trials.count(what, *worst(ends, folder))
        shutil.rmtree(folder)

    return tried


@short_and_long(12, 400)
def test_killed_before_an_event_and_continued(cut_and_continued, events, draw, number):
    places = range(1, events + 1) if number >= events else sorted(draw.sample(range(1, events + 1), number))
    for place in places:
        cut_and_continued(Fault(place, signal.SIGKILL, torn=bool(draw.getrandbits(1))))


@short_and_long(3, 100)
def test_killed_again_and_again(cut_and_continued, events, draw, number):
    for _ in range(number):
        cut_and_continued(*(Fault(draw.randint(1, events), signal.SIGKILL, torn=True) for _ in range(3)))


@short_and_long(6, 150)
def test_signalled_before_an_event_and_continued(cut_and_continued, events, draw, number):
    for turn in range(number):
        cut_and_continued(Fault(draw.randint(1, events), SIGNALS[turn % len(SIGNALS)]))


@short_and_long(15, 500)
def test_failed_by_the_system_and_continued(cut_and_continued, events, draw, number):
    for turn in range(number):
        kind, lasting = ERRORS[turn % len(ERRORS)], bool(draw.getrandbits(1))
        cut_and_continued(Fault(draw.randint(1, events), kind, is_error=True, lasting=lasting, torn=True))
