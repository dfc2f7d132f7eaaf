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
