"""A signal ends what is interruptible, wherever it happens to arrive."""

import os
import signal
import sys
import time

import pytest

from cluster.signals import Interrupted, StopRequest


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def test_a_signal_that_arrives_in_a_finalizer_interrupts_a_moment_later_without_a_message(capsys):
    class Dying:
        def __del__(self):
            send()
            for _ in range(1000):  # the handler runs between two of these
                pass

    began = time.monotonic()
    with StopRequest() as stop, pytest.raises(Interrupted), stop.interruptible():
        Dying()
        time.sleep(10)
    assert time.monotonic() - began < 5
    assert stop.exit_code == 143
    assert capsys.readouterr().err == ""


def test_an_interrupt_that_something_swallows_is_raised_at_the_end_of_the_block():
    with StopRequest() as stop, pytest.raises(Interrupted), stop.interruptible():
        try:
            send(signal.SIGINT)
            time.sleep(1)
        except BaseException:  # noqa: B036, S110
            pass
    assert stop.exit_code == 130


def test_an_exit_that_a_library_makes_of_the_signal_is_our_interruption_and_any_other_exit_is_not():
    def library(*_):
        sys.exit(0)

    with StopRequest() as stop, pytest.raises(Interrupted), stop.interruptible():
        try:
            send()
            time.sleep(1)
        except Interrupted:
            library()
    with StopRequest() as stop, pytest.raises(SystemExit), stop.interruptible():
        library()


def test_outside_of_such_blocks_the_first_signal_only_asks_and_the_second_interrupts():
    with StopRequest() as stop:
        send()
        time.sleep(0.01)
        assert stop.requested
        with stop.interruptible():
            pass
        with pytest.raises(Interrupted):
            send()
            time.sleep(1)
