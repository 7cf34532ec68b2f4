"""A signal asks for a stop and breaks nothing; a second one stops at once."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from adaptkit.training.interrupts import StopSignals

EITHER = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@EITHER
def test_the_first_signal_is_noted_and_the_work_goes_on(number: signal.Signals) -> None:
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number.name


@EITHER
def test_the_second_signal_stops_at_once(number: signal.Signals) -> None:
    with StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_afterwards_the_handlers_are_those_of_before() -> None:
    def handlers() -> list[object]:
        return [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]

    def fail() -> None:
        with StopSignals():
            assert handlers() != before
            raise ZeroDivisionError

    before = handlers()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert handlers() == before


def test_in_another_thread_signals_are_left_alone() -> None:
    seen = []

    def work() -> None:
        with StopSignals() as signals:
            seen.append(signals.received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
