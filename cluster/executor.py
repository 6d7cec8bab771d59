"""Executes a plan of trials on warm workers: in this process, or on Ray actors with work queued ahead.

A worker has imported its libraries and holds the shared objects before its first trial; short trials travel in batches;
a worker that dies or hangs is replaced and its trials run again elsewhere. Nothing grows with the number of trials: the
plan is an iterator and every outcome is handed on at once. A plan may depend on the outcomes so far, and on what trials
report while they run: it says None where there is nothing to run until more is known.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cluster.plan import Note, Outcome, Plan, Settings, outcome_of, unit_of
from cluster.pool import IDLE_SECONDS, Pool
from cluster.signals import StopRequest
from cluster.worker import Decide, Setup, Worker

if TYPE_CHECKING:
    from types import ModuleType


def execute(
    plan: Plan,
    setup: Setup,
    shared: Sequence[Any] = (),
    *,
    settings: Settings,
    stop: StopRequest,
    ray: ModuleType | None = None,
    decide: Decide | None = None,
    note: Note | None = None,
) -> Iterator[tuple[list[Outcome], int]]:
    """Run a plan of trials.

    Args:
        plan: what to run, read lazily: trials, or sequences of trials to be run at once as a pack; None where there
            is nothing to run before more outcomes were yielded.
        setup: builds the task in each worker.
        shared: what `setup` takes, put once into the object store.
        settings: workers, retries, limits.
        stop: checked often; once it drains, nothing new starts and the iterator ends with what is in flight; once it is
            requested, what is in flight is abandoned.
        ray: the connected `ray` module; needed unless `settings.workers` is 0.
        decide: hears what trials report while they run, and says which of them are to end.
        note: takes note of what happens to workers.

    Yields:
        (outcomes, running): outcomes as they come (at times none, so that the caller can look up), and how many
        trials are in flight.

    Raises:
        InputError: when no worker can be set up.
    """
    if settings.workers == 0:
        yield from _execute_here(plan, setup, shared, settings, stop, decide)
    else:
        assert ray is not None, "workers > 0 needs a connected ray"
        pool = Pool(ray, plan, setup, shared, settings, decide, note or (lambda event: None))
        try:
            while not stop.requested and not pool.finished:
                if stop.draining:
                    pool.drain()
                    if pool.finished:
                        break
                yield pool.step(), pool.running
        finally:
            pool.close()


def _execute_here(
    plan: Plan, setup: Setup, shared: Sequence[Any], settings: Settings, stop: StopRequest, decide: Decide | None
) -> Iterator[tuple[list[Outcome], int]]:
    with stop.interruptible():
        worker = Worker(setup, *shared, reporting=decide is not None, decide=decide)
        host, _, device = worker.describe()
    for item in plan:
        if item is None:  # all outcomes were yielded: what the plan waits for happens outside, e.g. in a thread
            if stop.draining:
                return
            time.sleep(IDLE_SECONDS)
            yield [], 0
            continue
        units = deque([unit_of(item)])
        while units:
            if stop.draining:
                return
            unit = units.popleft()
            with stop.interruptible(patient=True):
                (attempts,) = worker.run([[pending.trial for pending in unit]], settings.trial_timeout)
            outcomes = []
            for pending, attempt in zip(unit, attempts, strict=True):
                pending.attempts += 1
                if attempt.error is not None and pending.attempts <= settings.retries:
                    units.append([pending])
                else:
                    outcomes.append(outcome_of(pending, attempt, host, device))
            yield outcomes, len(unit)
