"""What a worker does with a trial: run the task, time it, and turn every way to end into a value.

While they run, trials can report what they have measured so far and be told to end early: `Channel`.
"""

from __future__ import annotations

import datetime as dt
import math
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


class ReportingTask(Task, Protocol):
    """A task whose trials report while they run."""

    def listen(self, channel: Channel) -> None:
        """Take the channel to report through; called once, before the first trial."""


class Pruned(Exception):  # noqa: N818 - not an error: the trial did what it was told
    """Raised (or returned in a pack) by a trial that was told to end; `tables` is what it had measured until then."""

    def __init__(self, tables: Tables) -> None:
        super().__init__("told to end")
        self.tables = tables


Setup = Callable[..., Task]
"""Called once a worker with the shared objects; what it returns runs every trial there."""

Unit = Sequence[Trial]
"""What a worker runs at once: one trial, or a pack of several."""

_ERROR_CHARACTERS = 4000
_LISTEN_SECONDS = 60.0


class Attempt(NamedTuple):
    """What one attempt at one trial gave; `error` is None when it completed or was pruned.

    `seconds` is wall clock, in a pack the trial's share of it; `started_at` is in UTC.
    """

    tables: Tables
    error: str | None
    started_at: dt.datetime
    seconds: float
    pruned: bool = False


class Report(NamedTuple):
    """What a trial had measured at a step, in rows of the metrics table without trial_id."""

    trial_id: str
    step: int
    rows: Sequence[Sequence[Any]]


Decide = Callable[[Sequence[Report]], Iterable[str]]
"""Hears reports in their order; returns the ids of the trials that are to end."""


class Channel:
    """Between the trials of a worker and whoever decides about them; safe in threads, and nothing here waits unasked.

    Args:
        decide: answers reports at once, within this process; None: reports wait until `take` fetches them, and the
            answer comes by `answer`.
    """

    def __init__(self, decide: Decide | None = None) -> None:
        self._decide = decide
        self._reports: list[Report] = []
        self._stopped: set[str] = set()
        self._answered: dict[str, int] = {}
        self._changed = threading.Condition()

    def report(self, trial_id: str, step: int, rows: Sequence[Sequence[Any]]) -> None:
        """Say what a trial has measured; returns at once."""
        report = Report(trial_id, step, rows)
        if self._decide is not None:
            self._stopped.update(self._decide([report]))
            return
        with self._changed:
            self._reports.append(report)
            self._changed.notify_all()

    def stopped(self, trial_id: str) -> bool:
        """Whether a trial has been told to end."""
        return trial_id in self._stopped

    def wait(self, trial_id: str, step: int, seconds: float) -> bool:
        """Wait until a report was answered; returns whether it was, which needs `Settings.acknowledge`."""
        if self._decide is not None:
            return True
        with self._changed:
            return self._changed.wait_for(lambda: self._answered.get(trial_id, -1) >= step, seconds)

    def take(self, seconds: float) -> list[Report]:
        """Fetch the reports that came since the last call, after waiting for the first of them."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._reports), seconds)
            reports, self._reports = self._reports, []
            return reports

    def answer(self, answered: Mapping[str, int], stop: Iterable[str]) -> None:
        """Take an answer: up to which step each trial's reports were heard, and which trials are to end."""
        with self._changed:
            self._answered.update(answered)
            self._stopped.update(stop)
            self._changed.notify_all()

    def forget(self, trial_ids: Iterable[str]) -> None:
        """Forget trials that have ended."""
        with self._changed:
            for trial_id in trial_ids:
                self._stopped.discard(trial_id)
                self._answered.pop(trial_id, None)


class TrialTimeoutError(Exception):
    """A trial outlived its time limit."""


class Worker:
    """Runs trials one after another; the same class inside a Ray actor and inside the calling process.

    Args:
        setup: builds the task.
        *shared: the objects `setup` takes, e.g. datasets; in a Ray actor they come from the node's object store.
        reporting: whether somebody hears what trials report while they run.
        decide: answers reports at once, in this process; None where they are fetched.
    """

    def __init__(self, setup: Setup, *shared: Any, reporting: bool = False, decide: Decide | None = None) -> None:
        self._task = setup(*shared)
        self._channel = Channel(decide)
        if reporting and hasattr(self._task, "listen"):
            cast(ReportingTask, self._task).listen(self._channel)

    def take_reports(self) -> list[Report]:
        """Fetch what the trials report, waiting for it; beside `run`, in a thread of its own."""
        return self._channel.take(_LISTEN_SECONDS)

    def answer(self, answered: Mapping[str, int], stop: Sequence[str]) -> None:
        """Answer reports; beside `run`, in a thread of its own."""
        self._channel.answer(answered, stop)

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
        self._channel.forget(trial.trial_id for trial in unit)
        seconds = (time.perf_counter() - began) / len(unit)
        attempts = []
        for result in results:
            pruned = isinstance(result, Pruned)
            measured = result.tables if isinstance(result, Pruned) else result
            error = describe_error(measured) if isinstance(measured, Exception) else _first_nan(measured)
            tables = {} if isinstance(measured, Exception) or error else measured
            attempts.append(Attempt(tables, error, started_at, seconds, pruned and not error))
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
