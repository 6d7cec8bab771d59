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
from typing import Any, NamedTuple, Protocol, cast

from cluster.trial import Trial

Tables = Mapping[str, Sequence[Sequence[Any]]]
"""Rows by table name; each row in the order of the table's schema without trial_id, which the runner puts in front."""


class Task(Protocol):
    """Runs trials on a worker. One that can run several trials of equal shape at once also has `pack`."""

    def __call__(self, trial: Trial) -> Tables:
        """Run one trial."""


class PackTask(Task, Protocol):
    """A task that can run a pack."""

    def pack(self, trials: Sequence[Trial]) -> Sequence[Tables | Exception]:
        """Run several trials at once; returns for each its tables or what ended it."""


Setup = Callable[..., Task]
"""Called once a worker with the shared objects; what it returns runs every trial there."""

Unit = Sequence[Trial]
"""What a worker runs at once: one trial, or a pack of several."""

_ERROR_CHARACTERS = 4000


class Attempt(NamedTuple):
    """What one attempt at one trial gave; `error` is None when it completed.

    `seconds` is wall clock, in a pack the trial's share of it; `started_at` is in UTC.
    """

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

    def run(self, units: Sequence[Unit], timeout: float | None = None) -> list[list[Attempt]]:
        """Run units in order; returns an attempt for each of their trials.

        Args:
            units: what to run.
            timeout: seconds a trial may take (a pack: a trial's share of it), enforced inside this process (main
                thread, Python code only); None leaves it to the caller.
        """
        return [self._attempt(unit, timeout) for unit in units]

    def _attempt(self, unit: Unit, timeout: float | None) -> list[Attempt]:
        started_at, began = dt.datetime.now(dt.UTC), time.perf_counter()
        results: Sequence[Tables | Exception]
        try:
            with _alarm(timeout, len(unit)):
                results = [self._task(unit[0])] if len(unit) == 1 else cast(PackTask, self._task).pack(unit)
        except Exception as raised:
            results = [raised] * len(unit)
        seconds = (time.perf_counter() - began) / len(unit)
        attempts = []
        for result in results:
            error = describe_error(result) if isinstance(result, Exception) else _first_nan(result)
            tables = {} if isinstance(result, Exception) or error else result
            attempts.append(Attempt(tables, error, started_at, seconds))
        return attempts


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
def _alarm(timeout: float | None, trials: int) -> Iterator[None]:
    """Raise TrialTimeoutError in the main thread after `timeout` seconds a trial."""
    if timeout is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(*_: object) -> None:
        raise TrialTimeoutError(f"outlived --trial_timeout {timeout:g} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, timeout * trials)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
