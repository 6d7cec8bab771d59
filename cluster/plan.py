"""What is executed and what comes of it: settings, plans, outcomes, events, and a trial on its way between them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cluster.trial import Trial
from cluster.worker import Attempt, Tables


@dataclass(frozen=True)
class Settings:
    """How to execute.

    Args:
        workers: number of Ray actors; 0 runs inside the calling process.
        cpus_per_worker: CPUs each actor reserves.
        gpus_per_worker: GPUs each actor reserves; a fraction lets several share one.
        retries: how often a trial that failed is tried again.
        trial_timeout: seconds a trial may take; None for no limit.
        max_batch: units that travel in one call at most; a plan that depends on outcomes wants few.
        acknowledge: answer every report, for trials that wait for the answer; otherwise only those that are to end
            hear of it.
    """

    workers: int
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    retries: int = 1
    trial_timeout: float | None = None
    max_batch: int = 256
    acknowledge: bool = False


class Event(NamedTuple):
    """Something that happened to a worker: kind "worker_lost", "node_lost" or "node_draining", node and words."""

    kind: str
    node: str
    detail: str


Note = Callable[[Event], None]
"""Takes note of an event."""

Plan = Iterable["Trial | Sequence[Trial] | None"]
"""What to run: trials, packs of trials, or None for nothing until more outcomes are known."""


@dataclass(frozen=True)
class Outcome:
    """The end of a trial: completed with its tables, pruned with those until then, or failed with its last error."""

    trial: Trial
    status: str
    error: str | None
    attempts: int
    node: str
    device: str
    started_at: dt.datetime
    seconds: float
    tables: Tables


@dataclass
class Pending:
    """A trial on its way: attempts made so far; `alone` once it is suspected of taking its worker down."""

    trial: Trial
    attempts: int = 0
    alone: bool = False


def unit_of(item: Trial | Sequence[Trial]) -> list[Pending]:
    """Wrap what a plan gives: a trial, or a pack."""
    return [Pending(trial) for trial in ([item] if isinstance(item, Trial) else item)]


def outcome_of(pending: Pending, attempt: Attempt, host: str, device: str) -> Outcome:
    """Turn the last attempt at a trial into its outcome."""
    status = "failed" if attempt.error is not None else "pruned" if attempt.pruned else "completed"
    started_at, seconds = attempt.started_at, attempt.seconds
    return Outcome(
        pending.trial, status, attempt.error, pending.attempts, host, device, started_at, seconds, attempt.tables
    )
