"""Where nobody watches, what a command is at is said only if it takes long."""

import threading
import time

from dma_lab import phases


def test_what_takes_long_is_said_once_and_what_does_not_is_not(monkeypatch, capsys):
    with phases.phase("doing little"):
        pass
    monkeypatch.setattr(phases, "_SECONDS_UNSAID", 0.01)
    with phases.phase("doing much"):
        begun = time.monotonic()
        while (
            any(isinstance(thread, threading.Timer) for thread in threading.enumerate())
            and time.monotonic() < begun + 10
        ):
            time.sleep(0.01)
    assert capsys.readouterr().err == "dma_lab: doing much\n"
