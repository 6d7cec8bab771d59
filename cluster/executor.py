"""Executes a plan of trials on warm workers: in this process, or on Ray actors with work queued ahead.

A worker has imported its libraries and holds the shared objects before its first trial; short trials travel in batches;
a worker that dies or hangs is replaced and its trials run again elsewhere. Nothing grows with the number of trials: the
plan is an iterator and every outcome is handed on at once. A plan may depend on the outcomes so far, and on what trials
report while they run: it says None where there is nothing to run until more is known.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.errors import InputError
from cluster.signals import StopRequest
from cluster.trial import Trial
from cluster.worker import Attempt, Decide, Report, Setup, Tables, Worker

if TYPE_CHECKING:
    from types import ModuleType

# A call costs a worker about 1.7 ms, so 0.2 s of trials a call make that under 1 %, and batches stay too short to leave
# another worker idle for long at the end of a plan.
_CALL_SECONDS = 0.2
# Trials longer than this gain nothing from a second call waiting in the worker, and could run elsewhere instead.
_QUEUE_AHEAD_SECONDS = 0.5
_WAIT_SECONDS = 0.2
_TIMEOUT_GRACE_SECONDS = 0.25
_MAX_SETUP_DEATHS = 3
_IDLE_SECONDS = 0.02
_LOOK_SECONDS = 1.0
_CONTROL = "control"


class _End:
    """What follows the last item of a plan."""


_END = _End()


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
class _Pending:
    """A trial on its way: attempts made so far; `alone` once it is suspected of taking its worker down."""

    trial: Trial
    attempts: int = 0
    alone: bool = False


@dataclass
class _Call:
    """Units given to an actor; `began` is when the actor could have started on them (monotonic seconds)."""

    ref: Any
    units: list[list[_Pending]]
    began: float

    @property
    def trials(self) -> list[_Pending]:
        return [pending for unit in self.units for pending in unit]

    @property
    def suspect(self) -> bool:
        return self.units[0][0].alone


@dataclass
class _Member:
    """An actor of the pool."""

    actor: Any
    ready: Any
    host: str = ""
    node: str = ""
    device: str = ""
    calls: deque[_Call] = field(default_factory=deque)
    listening: Any = None
    leaving: bool = False

    @property
    def started(self) -> bool:
        return self.ready is None


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
        pool = _Pool(ray, plan, setup, shared, settings, decide, note or (lambda event: None))
        try:
            while not stop.requested and not pool.finished:
                if stop.draining:
                    pool.drain()
                    if pool.finished:
                        break
                yield pool.step(), pool.running
        finally:
            pool.close()


def _unit(item: Trial | Sequence[Trial]) -> list[_Pending]:
    return [_Pending(trial) for trial in ([item] if isinstance(item, Trial) else item)]


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
            time.sleep(_IDLE_SECONDS)
            yield [], 0
            continue
        units = deque([_unit(item)])
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
                    outcomes.append(_outcome(pending, attempt, host, device))
            yield outcomes, len(unit)


def _outcome(pending: _Pending, attempt: Attempt, host: str, device: str) -> Outcome:
    status = "failed" if attempt.error is not None else "pruned" if attempt.pruned else "completed"
    started_at, seconds = attempt.started_at, attempt.seconds
    return Outcome(
        pending.trial, status, attempt.error, pending.attempts, host, device, started_at, seconds, attempt.tables
    )


class _Pool:
    """Warm actors, two calls in flight each while trials are short; the driver sees every death."""

    def __init__(
        self,
        ray: ModuleType,
        plan: Plan,
        setup: Setup,
        shared: Sequence[Any],
        settings: Settings,
        decide: Decide | None,
        note: Note,
    ) -> None:
        self._ray = ray
        self._note = note
        self._looked_at = time.monotonic()
        self._plan = iter(plan)
        self._plan_ended = False
        self._again: deque[_Pending] = deque()
        self._settings = settings
        self._decide = decide
        self._unit_seconds: float | None = None
        self._setup_deaths = 0
        self._setup = ray.put(setup)
        self._shared = [ray.put(item) for item in shared]
        reserved: dict[str, Any] = {
            "num_cpus": settings.cpus_per_worker,
            "num_gpus": settings.gpus_per_worker,
            "max_restarts": 0,
        }
        if decide is not None:  # reports are fetched and answered beside a running trial
            reserved["concurrency_groups"] = {_CONTROL: 2}
        self._actor_class = ray.remote(**reserved)(Worker)
        self._members = [self._start() for _ in range(settings.workers)]

    @property
    def running(self) -> int:
        """Trials in flight."""
        return sum(len(call.trials) for member in self._members for call in member.calls)

    @property
    def finished(self) -> bool:
        """Whether every trial of the plan has its outcome."""
        return self._plan_ended and not self._again and not self.running

    def drain(self) -> None:
        """Start nothing new."""
        self._plan_ended = True
        self._again.clear()

    def step(self) -> list[Outcome]:
        """Hand out work, wait a moment, and return the outcomes that came."""
        self._leave_draining_nodes()
        for member in self._members:
            if member.started:
                self._feed(member)
        if self.finished:
            return []
        owners = {m.ready if not m.started else m.calls[0].ref: m for m in self._members if not m.started or m.calls}
        speakers = {m.listening: m for m in self._members if m.listening is not None}
        refs = [*owners, *speakers]
        if not refs:
            time.sleep(_IDLE_SECONDS)
            return []
        ready, rest = self._ray.wait(refs, num_returns=1, timeout=_WAIT_SECONDS)
        if ready and rest:
            ready += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        outcomes: list[Outcome] = []
        self._hear([speakers[ref] for ref in ready if ref in speakers])
        for ref in ready:
            if ref in speakers:
                continue
            member = owners[ref]
            if member.started:
                outcomes += self._collect(member)
            else:
                self._greet(member)
        outcomes += self._end_overdue()
        return outcomes

    def close(self) -> None:
        """Kill the actors: nothing of a finished plan keeps a node from scaling down."""
        for member in self._members:
            self._ray.kill(member.actor)
        self._members = []

    def _start(self) -> _Member:
        actor = self._actor_class.remote(self._setup, *self._shared, reporting=self._decide is not None)
        return _Member(actor, actor.describe.remote())

    def _greet(self, member: _Member) -> None:
        """Take up a worker that has finished its setup, or find out why it died in it."""
        try:
            member.host, member.node, member.device = self._ray.get(member.ready)
        except self._ray.exceptions.RayError as error:
            self._setup_deaths += 1
            cause = error.__cause__ or error
            if self._setup_deaths >= _MAX_SETUP_DEATHS or "creation task" in str(error):
                lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
                raise InputError(f"workers: none could be set up: {lines[-1]}") from error
            self._replace(member)
            return
        self._setup_deaths = 0
        member.ready = None
        self._listen(member)

    def _listen(self, member: _Member) -> None:
        if self._decide is not None:
            member.listening = member.actor.take_reports.options(concurrency_group=_CONTROL).remote()

    def _hear(self, speakers: Sequence[_Member]) -> None:
        """Let reports be decided about, all that have come at once, and answer the workers that made them."""
        heard: list[tuple[_Member, Sequence[Report]]] = []
        for member in speakers:
            ref, member.listening = member.listening, None
            try:
                heard.append((member, self._ray.get(ref)))
            except self._ray.exceptions.RayError:
                continue  # the worker is gone, which its call tells better
            self._listen(member)
        reports = [report for _, some in heard for report in some]
        if not reports or self._decide is None:
            return
        stop = set(self._decide(reports))
        for member, some in heard:
            answered = {report.trial_id: report.step for report in some}
            ending = [trial_id for trial_id in answered if trial_id in stop]
            if ending or (answered and self._settings.acknowledge):
                member.actor.answer.options(concurrency_group=_CONTROL).remote(answered, ending)

    def _feed(self, member: _Member) -> None:
        seconds = self._unit_seconds
        if member.leaving:
            return
        depth = 2 if seconds is not None and seconds < _QUEUE_AHEAD_SECONDS else 1
        most = self._settings.max_batch
        size = 1 if seconds is None else max(1, min(most, int(_CALL_SECONDS / max(seconds, 1e-9))))
        while len(member.calls) < depth:
            if member.calls and (member.calls[-1].suspect or (self._again and self._again[0].alone)):
                # A worker that dies may take with it the answer to the call before: a suspect has nobody beside it.
                return
            units = self._take(size)
            if not units:
                return
            for unit in units:
                for pending in unit:
                    pending.attempts += 1
            ref = member.actor.run.remote([[pending.trial for pending in unit] for unit in units])
            member.calls.append(_Call(ref, units, time.monotonic()))

    def _take(self, size: int) -> list[list[_Pending]]:
        """Take up to `size` units: trials to be tried again first, each by itself, a suspect in a call of its own."""
        units: list[list[_Pending]] = []
        while self._again and len(units) < size:
            if self._again[0].alone and units:
                break
            units.append([self._again.popleft()])
            if units[-1][0].alone:
                return units
        while not self._plan_ended and len(units) < size:
            item = next(self._plan, _END)
            if item is None:
                break
            if isinstance(item, _End):
                self._plan_ended = True
            else:
                units.append(_unit(item))
        return units

    def _collect(self, member: _Member) -> list[Outcome]:
        call = member.calls.popleft()
        now = time.monotonic()
        if member.calls:
            member.calls[0].began = now
        try:
            results: list[list[Attempt]] = self._ray.get(call.ref)
        except self._ray.exceptions.RayTaskError as error:  # e.g. a result that cannot be serialised
            return self._blame(call, str(error).splitlines()[-1], now - call.began, member)
        except self._ray.exceptions.RayError as error:
            return self._lose(member, call, f"WorkerLost: {' '.join(str(error).split())[:1000]}")
        outcomes = []
        attempts = [attempt for unit in results for attempt in unit]
        seconds = sum(attempt.seconds for attempt in attempts) / len(results)
        self._unit_seconds = seconds if self._unit_seconds is None else 0.7 * self._unit_seconds + 0.3 * seconds
        for pending, attempt in zip(call.trials, attempts, strict=True):
            if attempt.error is not None and pending.attempts <= self._settings.retries:
                self._again.append(pending)
            else:
                outcomes.append(_outcome(pending, attempt, member.host, member.device))
        return outcomes

    def _lose(self, member: _Member, call: _Call, error: str) -> list[Outcome]:
        """A worker went: its queued calls were never begun; the call at its head may be the reason."""
        seconds = time.monotonic() - call.began
        for queued in member.calls:
            for pending in queued.trials:
                pending.attempts -= 1
                self._again.append(pending)
        member.calls.clear()
        blameless = self._node_is_gone(member.node) or "its node has died" in error
        self._note(Event("node_lost" if blameless else "worker_lost", member.node, f"on {member.host}: {error[:300]}"))
        self._replace(member)
        if blameless:  # the machine went, not the trial: this was no attempt
            for pending in call.trials:
                pending.attempts -= 1
                self._again.append(pending)
            return []
        return self._blame(call, error, seconds, member)

    def _blame(self, call: _Call, error: str, seconds: float, member: _Member) -> list[Outcome]:
        """Try the trials of a lost call again, each alone; one that was alone has itself to blame."""
        outcomes = []
        alone = len(call.trials) == 1
        for pending in call.trials:
            if alone and pending.attempts > self._settings.retries:
                started = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds)
                attempt = Attempt({}, error, started, seconds)
                outcomes.append(_outcome(pending, attempt, member.host, member.device))
            else:
                if not alone:  # one of the batch is to blame, the others are not: the batch was no attempt of theirs
                    pending.attempts -= 1
                pending.alone = True
                self._again.append(pending)
        return outcomes

    def _replace(self, member: _Member) -> None:
        self._ray.kill(member.actor)
        self._members[self._members.index(member)] = self._start()

    def _node_is_gone(self, node: str) -> bool:
        return any(info["NodeID"] == node and not info["Alive"] for info in self._ray.nodes())

    def _leave_draining_nodes(self) -> None:
        """Give workers on nodes that are being taken away nothing new, and start others elsewhere once they are done."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        draining = set(self._ray._private.state.state.get_draining_nodes())
        for member in [m for m in self._members if m.started]:
            if member.node in draining and not member.leaving:
                member.leaving = True
                self._note(Event("node_draining", member.node, f"on {member.host}: nothing new starts there"))
            if member.leaving and not member.calls:
                self._replace(member)

    def _end_overdue(self) -> list[Outcome]:
        """Kill the workers whose trial outlived the limit: Ray cannot cancel a call that is deep in C."""
        limit = self._settings.trial_timeout
        if limit is None:
            return []
        outcomes = []
        for member in list(self._members):
            if not member.calls:
                continue
            allowed = limit * max(len(unit) for unit in member.calls[0].units) + _TIMEOUT_GRACE_SECONDS
            if time.monotonic() - member.calls[0].began > allowed:
                call = member.calls.popleft()
                outcomes += self._lose(member, call, f"TrialTimeoutError: outlived --trial_timeout {limit:g} s")
        return outcomes
