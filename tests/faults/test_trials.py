"""The count itself: each end is told from the others."""

import subprocess
import time

import pytest

from dma_lab.messages import UserError


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
    assert trials.summary() == counts
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
    ],
)
def test_what_a_process_says_is_told_apart(new_trials, status, stderr, is_right, end):
    trials = new_trials()
    process = subprocess.CompletedProcess([], status, stdout="", stderr=stderr)
    trials.count_process("fault", process, None if is_right is None else lambda: is_right)
    assert trials.summary()[end] == trials.summary()["tried"] == 1
