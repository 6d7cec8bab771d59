"""Ctrl-C and SIGTERM (what `ray job stop` and a preempted machine send) as a request to stop cleanly."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType


class Interrupted(BaseException):
    """A signal came while nothing half-done could be left behind.

    Not a KeyboardInterrupt: Lightning turns that one into an exit of the process.
    """


class StopRequest:
    """Context manager that turns the first SIGINT or SIGTERM into a flag; a second one interrupts whatever runs.

    SIGTERM, which announces that the machine goes, leaves what runs a time of grace: nothing new starts (`draining`), and
    only when it is over the stop is `requested`. So does the end of the hours that may be spent.

    Inside `interruptible` blocks the first signal already raises Interrupted. Outside the main thread no handler can
    be set, and nobody but `request` sets the flag.

    Args:
        grace: seconds that what runs may take after SIGTERM or after the hours.
        hours: how long new work may start, from now; None for no limit.
    """

    def __init__(self, grace: float = 0.0, hours: float | None = None) -> None:
        self.signal: int | None = None
        self._grace = grace
        self._at_once = False
        self._drains_at = math.inf if hours is None else time.monotonic() + 3600 * hours
        self._interruptible = self._patient = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.arm()
        return self

    def __exit__(self, *_: object) -> None:
        """Put the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def arm(self) -> None:
        """Set the handlers, again after anything that sets its own (`ray.init` does)."""
        for number in self._previous:
            signal.signal(number, self._handle)

    def request(self) -> None:
        """Ask for a stop from code."""
        self._at_once = True

    @property
    def draining(self) -> bool:
        """Whether nothing new may start."""
        return self._at_once or time.monotonic() >= self._drains_at

    @property
    def requested(self) -> bool:
        """Whether what runs is to be given up."""
        return self._at_once or time.monotonic() >= self._drains_at + self._grace

    @property
    def exit_code(self) -> int:
        """The shell's convention for a process ended by a signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.signal or signal.SIGINT)

    @contextlib.contextmanager
    def interruptible(self, patient: bool = False) -> Iterator[None]:
        """Let a signal raise Interrupted at once within the block, or at its end where something swallowed it.

        Args:
            patient: whether SIGTERM lets the block run for the time of grace.
        """
        self._interruptible += 1
        self._patient += patient
        signalled_before = self.signal is not None
        try:
            yield
        except SystemExit:
            # Lightning's own answer to SIGTERM, if it comes before ours.
            if self.signal is None:
                raise
        finally:
            self._interruptible -= 1
            self._patient -= patient
        if self.signal is not None and not signalled_before and (self._at_once or not patient):
            raise Interrupted

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.signal is not None
        self.signal = self.signal or number
        if number == signal.SIGTERM and self._grace and not again:
            self._drains_at = min(self._drains_at, time.monotonic())
            if self._patient:
                timer = threading.Timer(self._grace, self._resend, (number,))
                timer.daemon = True
                timer.start()
                return
        else:
            self._at_once = True
        if again or self._interruptible:
            if _in_finalizer(frame):
                # Python prints and drops what a finalizer raises: come again when it is over.
                threading.Timer(0.02, self._resend, (number,)).start()
            else:
                raise Interrupted

    def _resend(self, number: int) -> None:
        if self._previous:
            os.kill(os.getpid(), number)


def _in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
