"""What a worker does with a trial: run the task, time it, and turn every way to fail into a value."""

from __future__ import annotations

import datetime as dt
import math
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from cluster.trial import Trial

Tables = Mapping[str, Sequence[Sequence[Any]]]
"""Rows by table name; each row in the order of the table's schema without trial_id, which the runner puts in front."""

Task = Callable[[Trial], Tables]
Setup = Callable[..., Task]
"""Called once a worker with the shared objects; what it returns runs every trial there."""

_ERROR_CHARACTERS = 4000


class Attempt(NamedTuple):
    """What one attempt at one trial gave; `error` is None when it completed. Seconds of wall clock, started_at in UTC."""

    tables: Tables
    error: str | None
    started_at: dt.datetime
    seconds: float


class TrialTimeoutError(Exception):
    """A trial outlived its time limit."""


class Worker:
    """Runs trials one after another; the same class inside a Ray actor and inside the calling process.

    Args:
        setup: builds the task.
        *shared: the objects `setup` takes, e.g. datasets; in a Ray actor they come from the node's object store.
    """

    def __init__(self, setup: Setup, *shared: Any) -> None:
        self._task = setup(*shared)

    def describe(self) -> tuple[str, str, str]:
        """Return (host name, Ray node id or "", device) of this worker."""
        # Neither library is imported for the asking: a task that needs one has it by now.
        ray, torch = sys.modules.get("ray"), sys.modules.get("torch")
        node = ray.get_runtime_context().get_node_id() if ray is not None and ray.is_initialized() else ""
        device = torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else "cpu"
        return socket.gethostname(), node, device

    def run(self, trials: Sequence[Trial], timeout: float | None = None) -> list[Attempt]:
        """Run trials in order.

        Args:
            trials: what to run.
            timeout: seconds a trial may take, enforced inside this process (main thread, Python code only); None
                leaves it to the caller.
        """
        return [self._attempt(trial, timeout) for trial in trials]

    def _attempt(self, trial: Trial, timeout: float | None) -> Attempt:
        started_at, began = dt.datetime.now(dt.UTC), time.perf_counter()
        error: str | None = None
        tables: Tables = {}
        try:
            with _alarm(timeout):
                tables = self._task(trial)
            if (bad := _first_nan(tables)) is not None:
                error, tables = bad, {}
        except Exception as raised:
            error = describe_error(raised)
        return Attempt(tables, error, started_at, time.perf_counter() - began)


def describe_error(error: BaseException) -> str:
    """One line with type and message, then the end of the traceback."""
    text = "".join(traceback.format_exception(error))
    summary = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"{summary}\n{text[-_ERROR_CHARACTERS:]}"


def _first_nan(tables: Tables) -> str | None:
    for step, environment, split, metric, value in tables.get("metrics", ()):
        if math.isnan(value):
            return f"NaN: {metric} of environment {environment!r} ({split}) is NaN at step {step}"
    return None


@contextmanager
def _alarm(timeout: float | None) -> Iterator[None]:
    """Raise TrialTimeoutError in the main thread after `timeout` seconds."""
    if timeout is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(*_: object) -> None:
        raise TrialTimeoutError(f"outlived --trial_timeout {timeout:g} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
