"""Warm Ray actors with work queued ahead: who gets what, who is lost, and who takes their place."""

from __future__ import annotations

import datetime as dt
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError
from cluster.plan import Event, Note, Outcome, Pending, Plan, Settings, outcome_of, unit_of
from cluster.worker import Attempt, Decide, Report, Setup, Worker

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
_LOOK_SECONDS = 1.0
_CONTROL = "control"
IDLE_SECONDS = 0.02
"""How long to wait where there is nothing to run and nothing to hear of."""


class _End:
    """What follows the last item of a plan."""


_END = _End()


@dataclass
class _Call:
    """Units given to an actor; `began` is when the actor could have started on them (monotonic seconds)."""

    ref: Any
    units: list[list[Pending]]
    began: float

    @property
    def trials(self) -> list[Pending]:
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


class Pool:
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
        self._again: deque[Pending] = deque()
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
            time.sleep(IDLE_SECONDS)
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

    def _take(self, size: int) -> list[list[Pending]]:
        """Take up to `size` units: trials to be tried again first, each by itself, a suspect in a call of its own."""
        units: list[list[Pending]] = []
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
                units.append(unit_of(item))
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
                outcomes.append(outcome_of(pending, attempt, member.host, member.device))
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
                outcomes.append(outcome_of(pending, attempt, member.host, member.device))
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
