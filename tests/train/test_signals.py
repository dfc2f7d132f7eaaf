"""What a request to stop is remembered by."""

import signal

import pytest

from dma_lab.train.signals import StopRequest


class _Interrupted:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_drops_in_a_finalizer_still_stops_the_run():
    with StopRequest() as stop:
        del [_Interrupted()][0]
        assert stop.number == signal.SIGINT


def test_a_second_interrupt_ends_at_once_where_the_first_could_wait():
    with StopRequest() as stop:
        stop.can_wait = True
        signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


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
