"""The count itself: each end is told from the others."""

import signal
import subprocess
import time

import pytest

from dma_lab.messages import UserError
from tests.faults.scripts import HANGS


def _raise(error):
    raise error


def test_what_is_tried_in_process_is_told_apart(new_trials, wrong):
    trials = new_trials(seconds=0.2)
    trials.try_here("a", lambda: 1)
    trials.try_here("b", lambda: _raise(UserError("seed=-1: it must be 0 or more.")), must_name=("seed",))
    trials.try_here("c", lambda: _raise(UserError("seed=-1: it must be\n0 or more.")))
    trials.try_here("d", lambda: _raise(UserError("it must be 0 or more.")), must_name=("seed",))
    trials.try_here("e", lambda: _raise(wrong("3 documents of 4")))
    for fault in ("fault f", "f"):
        trials.try_here(fault, lambda: [][0])
    trials.try_here("g", lambda: [time.process_time() for _ in range(10**6)])
    counts = {"tried": 8, "survived": 1, "refused": 1, "silently wrong": 1, "traceback": 4, "too slow": 1}
    assert {end: count for end, count in trials.summary().items() if count} == counts
    complaint = trials.complaint()
    for said in ("not one sentence", "names none of ('seed',)", "3 documents of 4", "IndexError at test_trials.py"):
        assert said in complaint
    assert "fault f" not in complaint, "the shortest fault of a way stands for it"


@pytest.mark.parametrize(
    ("status", "stderr", "is_right", "end"),
    [
        (0, "", None, "survived"),
        (0, "", True, "survived"),
        (0, "", False, "silently wrong"),
        (2, "dma_lab: tokenizing.\nerror: a.jsonl, line 3 is not valid JSON.\n", None, "refused"),
        (2, "error: one.\nerror: two.\n", None, "traceback"),
        (1, "error: one.\n", None, "refused"),
        (3, "error: one.\n", None, "traceback"),
        (2, "Traceback (most recent call last):\nerror: one.\n", None, "traceback"),
        (-11, "", None, "traceback"),
        (HANGS, "step 3\n", None, "hung"),
    ],
)
def test_what_a_process_says_is_told_apart(new_trials, status, stderr, is_right, end):
    trials = new_trials()
    process = subprocess.CompletedProcess([], status, stdout="", stderr=stderr)
    trials.count_process("fault", process, None if is_right is None else lambda: is_right)
    assert trials.summary()[end] == trials.summary()["tried"] == 1


@pytest.mark.parametrize(
    ("status", "stderr", "sent", "end"),
    [
        (143, "stopped and saved\n", signal.SIGTERM, "survived"),
        (143, "Traceback (most recent call last):\nValueError\n", signal.SIGTERM, "traceback"),
        (0, "", signal.SIGTERM, "late"),
        (130, "", signal.SIGTERM, "traceback"),
        (-9, "", signal.SIGKILL, "survived"),
        (-9, "", signal.SIGTERM, "traceback"),
        (1, "error: another process ended.\n", signal.SIGKILL, "refused"),
        (HANGS, "", signal.SIGKILL, "hung"),
    ],
)
def test_what_a_signal_comes_to_is_told_apart(new_trials, status, stderr, sent, end):
    process = subprocess.CompletedProcess([], status, stdout="", stderr=stderr)
    assert new_trials().of_cut(process, sent)[0] == end


def test_a_process_that_does_not_end_is_killed_and_no_kill_survived(scripts, tiny, new_trials, tmp_path):
    (tmp_path / "here").mkdir()
    hanging = scripts.start(tiny, tmp_path / "here", before=signal.pause)
    process = hanging.ended(seconds=0.5)
    assert new_trials().of_cut(process, signal.SIGKILL)[0] == "hung"
    assert not hanging.running
