"""What a request to stop is remembered by."""

import signal

import pytest

from dma_lab.run_summary import Summary
from dma_lab.train.fit_run import fit_run
from dma_lab.train.runs import RunDirectory
from dma_lab.train.signals import StopRequest, heed_signals, signals_prevail


class _Interrupted:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_drops_in_a_finalizer_still_stops_the_run():
    with StopRequest() as stop:
        del [_Interrupted()][0]
        assert stop.number == signal.SIGINT


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("interrupts_heeded")
def test_nothing_begins_after_a_signal_that_python_dropped_in_a_finalizer():
    heed_signals()
    with signals_prevail():
        del [_Interrupted()][0]
    with pytest.raises(KeyboardInterrupt), signals_prevail():
        pytest.fail("it begins")
    heed_signals()
    with pytest.raises(OSError, match="of its own"), signals_prevail():
        raise OSError("of its own")


def test_interrupts_that_this_process_was_started_to_ignore_are_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        heed_signals()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_ends_at_once_where_the_first_could_wait():
    with StopRequest() as stop:
        stop.can_wait = True
        signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_error_that_a_signal_s_end_came_to_is_told_from_one_of_the_run_s_own():
    with StopRequest() as stop:
        stop.can_wait = True
        signal.raise_signal(signal.SIGUSR1)
        assert stop.came_of(OSError("disk full")) is None, "the step's end came to it, as it would have unasked"
        stop.can_wait = False
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGUSR1)
        end = stop.came_of(AttributeError("of a config that was half changed"))
        assert isinstance(end, SystemExit)
        assert end.code == 128 + signal.SIGUSR1
        assert stop.came_of(KeyboardInterrupt()) is None


def test_a_run_that_failed_as_a_signal_unwound_it_was_interrupted(read, overrides, tmp_path, monkeypatch):
    def unwind(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            raise AttributeError("of a config that was half changed")

    monkeypatch.setattr("dma_lab.train.fit_run.train_within_memory", unwind)
    with pytest.raises(SystemExit) as end:
        fit_run(read(overrides))
    assert end.value.code == 128 + signal.SIGTERM
    (file,) = tmp_path.glob("*/summary.json")
    summary = Summary.read(file.parent)
    assert (summary.status, summary.signal) == ("interrupted", signal.SIGTERM)


def test_a_signal_as_the_last_summary_is_to_be_written_leaves_no_run_that_seems_to_run(
    read, overrides, tmp_path, monkeypatch
):
    settings = read([*overrides, "attention=mha", "tokens=2048"])
    write = RunDirectory.write_summary

    def signalled(run: RunDirectory, summary: Summary) -> None:
        if summary.status == "finished":
            signal.raise_signal(signal.SIGTERM)
        write(run, summary)

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "write_summary", signalled)
        with pytest.raises(SystemExit) as ended:
            fit_run(settings)
    assert ended.value.code == 128 + signal.SIGTERM
    (run,) = tmp_path.iterdir()
    left = Summary.read(run)
    assert (left.status, left.signal) == ("interrupted", signal.SIGTERM)
    assert fit_run(settings).status == "finished"


@pytest.mark.parametrize("can_wait", [True, False])
def test_a_launchers_own_handler_is_called_once_the_run_is_over(can_wait):
    """Submitit's queues the job again, and ends the process; it must not before the run is saved."""
    done = []

    def queue_again(number, frame):
        done.append(f"queued again by {number}")
        raise SystemExit(-1)

    def run(asked: bool) -> None:
        with StopRequest() as stop:
            stop.can_wait = can_wait
            if asked:
                signal.raise_signal(signal.SIGUSR2)
            done.append("saved")

    before = signal.signal(signal.SIGUSR2, queue_again)
    try:
        with pytest.raises(SystemExit) as end:
            run(asked=True)
        assert end.value.code == -1
        assert done == ["saved"] * can_wait + [f"queued again by {signal.SIGUSR2}"]
        run(asked=False)
        assert done[1 + can_wait :] == ["saved"]
    finally:
        signal.signal(signal.SIGUSR2, before)
