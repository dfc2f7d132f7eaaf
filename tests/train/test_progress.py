"""The time left, by a clock that the test winds: it is told by steps that compile nothing."""

import time

import pytest

from dma_lab.train.progress import TrainingProgress


@pytest.fixture
def now(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_what_compiles_is_said_and_in_no_time_left(now, capsys):
    with TrainingProgress(steps=114, first_step=10, compiling_steps=4) as progress:
        assert capsys.readouterr().err == "training  compiling its first steps\n"
        for step, seconds in ((11, 60), (12, 1), (13, 1), (14, 7)):
            now[0] += seconds
            progress.metrics(2.5, None)
            progress.advance(step)
        assert capsys.readouterr().err == "training  step 11/114  loss 2.5000  compiling its first steps\n"
        now[0] += 20
        progress.metrics(2.0, 100.0)
        progress.advance(24)  # 10 steps in 20 s, 90 to come
    assert capsys.readouterr().err == "training  step 24/114  loss 2.0000  100 tokens/s  0:03:00 left\n"


def test_what_does_not_compile_has_a_time_left_from_its_first_step(now, capsys):
    with TrainingProgress(steps=100, first_step=0, compiling_steps=0) as progress:
        now[0] += 15
        progress.metrics(3.0, None)
        progress.advance(1)
    assert capsys.readouterr().err == "training  step 1/100  loss 3.0000  0:24:45 left\n"
