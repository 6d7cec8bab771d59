"""The path every job that executes a plan takes: resume from the run, execute on Ray, store, stop cleanly, sum up."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from cluster.errors import InputError
from cluster.executor import execute
from cluster.feasibility import check_feasible
from cluster.packing import packs
from cluster.plan import Event, Outcome, Settings
from cluster.progress import PlanProgress, format_duration
from cluster.session import connect
from cluster.signals import Interrupted, StopRequest
from cluster.store import Run, Store
from cluster.trial import Trial
from cluster.worker import Report, Setup
from jobs.command import command_line, versions
from jobs.outcomes import outcome_rows

Plan = Callable[[], Iterator[Trial]]
"""Lists the trials, the same at every call."""


class AdaptivePlan(Protocol):
    """A plan whose trials depend on what earlier ones gave: a search. Its numbers are those of its own unit, e.g. suggestions."""

    @property
    def counts(self) -> Counts:
        """Where the plan stands."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to run."""

    def units(self, workers: int) -> Iterator[Sequence[Trial] | None]:
        """Yield what to run next, one pack after the other, for so many workers; None where nothing is known yet."""

    def decide(self, reports: Sequence[Report]) -> Iterable[str]:
        """Hear what trials report while they run; returns the ids of those that are to end."""

    def take(self, outcomes: Sequence[Outcome]) -> Mapping[str, Sequence[Sequence[Any]]]:
        """Hear what ended and is stored by now (at times nothing); returns further rows to store, by table."""

    def note(self) -> str:
        """What a person wants to see beside the progress."""

    def close(self) -> None:
        """Put everything away; called whatever happened."""


_LARGEST_PACK = 32
SEARCH_BATCH = 2
"""Packs that a search sends in one call where they are short: more would be asked for before the answers are known that
they should depend on, fewer leave workers of 50 ms trials idle for a tenth of the time."""


@dataclass(kw_only=True)
class Execution:
    """What every job that executes a plan can be told.

    Args:
        workers: Ray workers; null takes one a CPU, 0 runs in this process without Ray.
        address: HOST:PORT or "auto" of a running Ray; null starts one for the job.
        gpus_per_worker: GPUs a worker reserves; a fraction shares one.
        retries: how often a failed trial is tried again.
        trial_timeout: seconds a trial may take; null for no limit.
        retry_failed: run trials again that are stored as failed.
        grace: seconds that what runs may take to end after SIGTERM or --max_hours.
        max_hours: after as many hours nothing new starts; null for no limit.
        timing: print where the time of the start went.

    Raises:
        InputError: for values out of range.
    """

    workers: int | None = None
    address: str | None = None
    gpus_per_worker: float = 0
    retries: int = 1
    trial_timeout: float | None = None
    retry_failed: bool = False
    grace: float = 25.0
    max_hours: float | None = None
    timing: bool = False

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise InputError(f"retries: {self.retries} is too small; give 0 or more")
        if self.trial_timeout is not None and self.trial_timeout <= 0:
            raise InputError(f"trial_timeout: {self.trial_timeout} is not above 0; give more, or null")
        if self.grace < 0:
            raise InputError(f"grace: {self.grace} is too small; give 0 or more")
        if self.max_hours is not None and self.max_hours <= 0:
            raise InputError(f"max_hours: {self.max_hours} is not above 0; give more, or null")
        if (self.workers or 0) < 0 or self.gpus_per_worker < 0:
            raise InputError("workers and gpus_per_worker: give 0 or more")

    def require(self, least: Mapping[str, int], above_zero: Sequence[str] = ()) -> None:
        """Check numbers among the options.

        Args:
            least: by option, its smallest value.
            above_zero: options that are null or above 0.

        Raises:
            InputError: for the first that is too small.
        """
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise InputError(f"{name}: {getattr(self, name)} is too small; give {smallest} or more")
        for name in above_zero:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{name}: {value} is not above 0; give more, or null")


@dataclass(frozen=True)
class Work:
    """What is to be executed.

    Args:
        total: number of trials in the plan.
        make_plan: builds the plan; may import libraries, for it runs while Ray starts.
        make_search: builds a plan that adapts to outcomes, instead of `make_plan`, from the run.
        setup: prepares a worker.
        shared: what `setup` takes; large arrays travel to a node once.
        shape: what trials must share to train as one pack; None where trials run one by one.
        pack: size of a pack; None chooses.
        plan_first: whether the plan may be refused for what the person wrote, so that nothing should start before it.
        schemas: of tables beyond the project's.
        acknowledge: whether trials wait for the answer to their reports.
    """

    total: int
    make_plan: Callable[[], Plan] | None
    setup: Setup
    shared: tuple[Any, ...] = ()
    shape: Callable[[Trial], Hashable] | None = None
    pack: int | None = None
    plan_first: bool = False
    schemas: Mapping[str, pa.Schema] = field(default_factory=dict)
    make_search: Callable[[Run], AdaptivePlan] | None = None
    acknowledge: bool = False


@dataclass
class Counts:
    """Where a plan stands: all but `ran` include what earlier launches stored.

    `tolerant` says that failed trials are part of what was asked for, as long as some are completed.
    """

    total: int
    completed: int = 0
    failed: int = 0
    first_error: str = ""
    ran: int = 0
    pruned: int = 0
    tolerant: bool = False

    @property
    def done(self) -> int:
        """Trials stored."""
        return self.completed + self.failed + self.pruned

    def __str__(self) -> str:
        """In words."""
        pruned = f"{self.pruned} pruned, " if self.pruned else ""
        return f"{self.total} trials: {self.completed} completed, {pruned}{self.failed} failed, {self.ran} run now"


class Clock:
    """Where the time goes between the start of the process and the first result."""

    def __init__(self) -> None:
        import psutil

        self.began = self._last = psutil.Process().create_time()
        self.laps: dict[str, float] = {}
        self.lap("python and options")

    def lap(self, name: str) -> None:
        """Name what was done since the last lap; only the first of a name counts."""
        now = time.time()
        self.laps.setdefault(name, now - self._last)
        self._last = now

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.laps.items())
        return f"{sum(self.laps.values()):.1f} s to the first finished trial: {parts}"


def launch(
    prog: str,
    options: Execution,
    run: str,
    prepare: Callable[[], Work],
    summarise: Callable[[Counts], None] | None = None,
) -> int:
    """Execute a job's plan against its run.

    Args:
        prog: the command, e.g. "shiftlab sweep".
        options: the command's options.
        run: where results go.
        prepare: checks everything that can be checked before anything starts, and loads the data.
        summarise: shows the results, called when the plan was gone through and something is completed.

    Returns:
        0 if every trial of the plan is completed, 1 if some failed, 130 or 143 if a signal stopped it.
    """
    clock = Clock()
    with StopRequest(options.grace, options.max_hours) as stop:
        try:
            with stop.interruptible():
                work = prepare()
                clock.lap("data")
            try:
                with Store(run, work.schemas) as store:
                    if store.recovered:
                        note = f"recovered {store.recovered} rows that a launch before this one had not sealed"
                        print(note, file=sys.stderr)
                    counts = _Launch(prog, options, run, work, store, stop, clock).execute()
            except OSError as error:  # of the tables, or of what a search keeps
                raise InputError(
                    f"run: cannot write to {run!r} ({error.strerror or error}); what was stored is kept: "
                    f"make room and resume with {command_line(prog, options)}"
                ) from error
        except Interrupted:
            counts = None
        if counts is None or (stop.draining and counts.done < counts.total):
            stored = "" if counts is None else f"{counts.done} of {counts.total} trials are stored; "
            hours = f" after {options.max_hours:g} h (--max_hours)" if stop.signal is None else ""
            print(f"stopped{hours}: {stored}resume with\n  {command_line(prog, options)}", file=sys.stderr)
            return 1 if stop.signal is None else stop.exit_code
    if options.timing and counts.ran:
        print(clock)
    if counts.completed and summarise is not None:
        summarise(counts)
    print(f"{counts} in {format_duration(time.time() - clock.began)}")
    tolerated = counts.tolerant and counts.completed
    if counts.failed and not tolerated:
        why = f" ({counts.first_error})" if counts.first_error else ""
        print(
            f"{prog}: {counts.failed} trials failed{why}; see `shiftlab report {run}`, "
            "and run the same command with --retry_failed true to try them again",
            file=sys.stderr,
        )
    return 1 if counts.failed and not tolerated else 0


@dataclass
class _Launch:
    prog: str
    options: Execution
    run: str
    work: Work
    store: Store
    stop: StopRequest
    clock: Clock

    def execute(self) -> Counts:
        with contextlib.ExitStack() as stack:
            if self.work.make_search is not None:
                with self.stop.interruptible():
                    search = self.work.make_search(Run(self.run))
                stack.callback(search.close)
                self.clock.lap("libraries and plan")
                return self._search(search, stack)
            return self._plan(stack)

    def _plan(self, stack: contextlib.ExitStack) -> Counts:
        """Go through a plan that is known beforehand."""
        assert self.work.make_plan is not None
        options, done = self.options, Run(self.run).trial_status()
        # What a search pruned was never trained to its end.
        ended = {key: status for key, status in done.items() if status != "pruned"}
        skip = {key for key, status in ended.items() if not (options.retry_failed and status == "failed")}
        counts = Counts(self.work.total)
        # Importing what trials need takes as long as starting Ray, which mostly waits for others: do both at once.
        planner = stack.enter_context(ThreadPoolExecutor(1)).submit(self.work.make_plan)
        if self.work.plan_first:
            planner.result()
        if len(skip) >= counts.total:  # perhaps nothing is missing: find out before Ray starts for nothing
            _count_stored(counts, planner.result()(), skip, done)
            if counts.done == counts.total:
                return counts
        workers, ray = self._connect(stack)
        plan = planner.result()
        self.clock.lap("libraries and plan")
        if skip and not counts.done:
            _count_stored(counts, plan(), skip, done)
        missing = (trial for trial in plan() if trial.trial_id not in skip)
        # A worker without a trial would only import its libraries in the way of those that have one.
        workers = min(workers, counts.total - counts.done)
        return self._run_missing(missing, counts, workers, ray)

    def _search(self, search: AdaptivePlan, stack: contextlib.ExitStack) -> Counts:
        """Go through a plan that adapts to what it hears."""
        self._store(search.take([]))
        counts = search.counts
        if search.done:
            return counts
        workers, ray = self._connect(stack)
        workers = min(workers, counts.total - counts.done)
        settings = self._settings(workers, max_batch=SEARCH_BATCH, acknowledge=self.work.acknowledge)
        units, about, setup, shared = search.units(max(1, workers)), versions(), self.work.setup, self.work.shared
        with (
            PlanProgress("trials", counts.total, counts.done, counts.failed) as progress,
            contextlib.suppress(Interrupted),
        ):
            for batch, running in execute(
                units, setup, shared, settings=settings, stop=self.stop, ray=ray, decide=search.decide, note=self._note
            ):
                self._keep(batch, about)
                self._store(search.take(batch))
                if batch:
                    self.clock.lap("workers and first trial")
                before, counts = counts, search.counts
                failed = counts.failed - before.failed
                progress.update(counts.done - before.done - failed, failed, running, search.note())
                self.store.tick()
        return search.counts

    def _connect(self, stack: contextlib.ExitStack) -> tuple[int, Any]:
        """Connect to Ray, where it is wanted, and find the number of workers."""
        options = self.options
        if options.workers == 0:
            return 0, None
        embedded = not options.address and not os.environ.get("RAY_ADDRESS")
        cpus = options.workers or os.cpu_count() or 1
        with self.stop.interruptible():
            ray = stack.enter_context(connect(options.address, cpus=cpus if embedded else None))
            self.stop.arm()
            if not embedded:
                check_feasible(ray, {"CPU": 1, "GPU": options.gpus_per_worker})
        workers = self._workers(options.workers, ray.cluster_resources())
        self.clock.lap("Ray")
        return workers, ray

    def _settings(self, workers: int, **more: Any) -> Settings:
        options = self.options
        return Settings(workers, 1, options.gpus_per_worker, options.retries, options.trial_timeout, **more)

    def _workers(self, workers: int | None, resources: Mapping[str, float]) -> int:
        """Choose the number of workers where none was given, and refuse what an embedded Ray can never start.

        Raises:
            InputError: when the cluster has no CPU yet, so that the number cannot be guessed, or this machine lacks
                GPUs.
        """
        gpus = self.options.gpus_per_worker
        embedded = not self.options.address and not os.environ.get("RAY_ADDRESS")
        if embedded and gpus > resources.get("GPU", 0):
            found = resources.get("GPU", 0)
            raise InputError(f"gpus_per_worker: {gpus:g} asked for, this machine has {found:g}; give 0")
        if workers is not None:
            return workers
        most = resources.get("CPU", 0)
        if gpus:
            most = min(most, resources.get("GPU", 0) / gpus)
        if most < 1:
            lacking = "GPU" if gpus and resources.get("CPU", 0) >= 1 else "CPU"
            raise InputError(f"workers: the cluster has no {lacking} yet; give --workers N, so that it grows to N")
        return int(most)

    def _run_missing(self, missing: Iterable[Trial], counts: Counts, workers: int, ray: Any) -> Counts:
        if counts.done == counts.total:
            return counts
        work, about = self.work, versions()
        plan: Iterable[Any] = missing
        if work.shape is not None:
            # Large enough packs to be worth it, small enough that every worker has several to take its turn at.
            share = (counts.total - counts.done) // (4 * max(1, workers))
            plan = packs(missing, work.shape, work.pack or min(_LARGEST_PACK, max(1, share)))
        settings = self._settings(workers)
        with (
            PlanProgress("trials", counts.total, counts.done, counts.failed) as progress,
            contextlib.suppress(Interrupted),
        ):
            for batch, running in execute(
                plan, work.setup, work.shared, settings=settings, stop=self.stop, ray=ray, note=self._note
            ):
                if batch:
                    self._keep(batch, about)
                    self.clock.lap("workers and first trial")
                failed = [outcome for outcome in batch if outcome.status == "failed"]
                counts.ran += len(batch)
                counts.completed += len(batch) - len(failed)
                counts.failed += len(failed)
                if failed and not counts.first_error:
                    counts.first_error = (failed[0].error or "").splitlines()[0]
                progress.update(len(batch) - len(failed), len(failed), running)
                self.store.tick()
        return counts

    def _note(self, event: Event) -> None:
        self._store({"events": [(None, dt.datetime.now(dt.UTC), event.kind, None, event.node, event.detail)]})

    def _keep(self, outcomes: Iterable[Outcome], about: str) -> None:
        self._store(outcome_rows(outcomes, about))

    def _store(self, rows: Mapping[str, Sequence[Sequence[Any]]]) -> None:
        self.store.append(rows)


def _count_stored(counts: Counts, plan: Iterable[Trial], skip: set[str], done: Mapping[str, str]) -> None:
    for trial in plan:
        if trial.trial_id in skip:
            counts.completed += done[trial.trial_id] == "completed"
            counts.failed += done[trial.trial_id] != "completed"
