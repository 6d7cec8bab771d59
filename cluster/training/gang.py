"""A warm gang of workers that train one model together, and go on when some of them are lost or more of them come.

The driver hears every death, keeps the checkpoints, and forms the gang anew from the workers that it has: they are
warm, so a new start costs a fraction of a second. What was lost is asked for again at once, which is what an autoscaler
sees; when it has come, the training pauses between two steps and goes on with more workers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from cluster.errors import InputError
from cluster.training.rank import CONTROL, Ended, Message, Place, Rank, RankSetup
from cluster.trial import Trial

if TYPE_CHECKING:
    from types import ModuleType

_WAIT_S = 0.2
_TAKE_S = 10.0
_START_S = 30.0
_GROW_S = 2.0
_LOOK_S = 1.0
_ANSWER_S = 10.0
# Who trained with a worker that died cannot go on. Most see it at once; a host that vanished leaves them waiting.
_CUT_S = 3.0
_BROKEN_S = 30.0
_PING_S = 5.0
_MAX_SETUP_DEATHS = 3
_MAX_FRUITLESS = 5
_DETAIL_CHARACTERS = 300
_NO_ANSWER = "it did not answer"


@dataclass(frozen=True)
class GangSettings:
    """Who trains.

    Args:
        workers: processes that train together where there is room.
        min_workers: as many are enough.
        cpus_per_worker: CPUs each reserves.
        gpus_per_worker: GPUs each reserves.
        grace: seconds that a training has to pause when it is told to.
    """

    workers: int
    min_workers: int
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    grace: float = 25.0


class Handler(Protocol):
    """Keeps what a training run gives to the driver."""

    def hear(self, message: Message, workers: int) -> None:
        """Take a message of rank 0."""

    def checkpoint(self) -> tuple[int, bytes] | None:
        """Return the step and content of the checkpoint to go on from; None: from the beginning."""

    def rewind(self) -> None:
        """Forget the checkpoints that were not verified: workers disagreed."""

    def event(self, kind: str, step: int | None, node: str, detail: str) -> None:
        """Take note of what happened."""

    def waiting(self, ready: int, wanted: int) -> None:
        """Hear that the training waits for workers."""


@dataclass
class _Member:
    actor: Any
    ready: Any
    host: str = ""
    node: str = ""
    device: str = ""
    leaving: bool = False

    @property
    def started(self) -> bool:
        return self.ready is None


@dataclass
class _Round:
    """One stretch of training by the same workers."""

    members: list[_Member]
    runs: dict[Any, _Member]
    began: float
    ended: dict[int, Ended] = field(default_factory=dict)
    lost: list[tuple[_Member, str]] = field(default_factory=list)
    died: bool = False
    pausing_since: float | None = None
    looked_at: float = 0.0
    broken_since: float | None = None

    @property
    def over(self) -> bool:
        return not self.runs


class Gang:
    """Workers that stay for one training after another.

    Args:
        ray: the connected `ray` module.
        setup: builds each worker's task.
        shared: what `setup` takes, put once into the object store.
        settings: who trains.

    Raises:
        InputError: when workers cannot be set up.
    """

    def __init__(self, ray: ModuleType, setup: RankSetup, shared: Sequence[Any], settings: GangSettings) -> None:
        self._ray, self._settings = ray, settings
        self._setup = ray.put(setup)
        self._shared = [ray.put(item) for item in shared]
        self._quarantined: set[str] = set()
        self._setup_deaths = 0
        self._begun = False
        reserved = {"num_cpus": settings.cpus_per_worker, "num_gpus": settings.gpus_per_worker}
        self._actor_class = ray.remote(**reserved, max_restarts=0, concurrency_groups={CONTROL: 2})(Rank)
        self._members = [self._start() for _ in range(settings.workers)]

    @property
    def devices(self) -> str:
        """Devices of the workers, each once."""
        return ", ".join(sorted({member.device for member in self._members if member.started}))

    @property
    def nodes(self) -> str:
        """Hosts of the workers, each once."""
        return ", ".join(sorted({member.host for member in self._members if member.started}))

    def close(self) -> None:
        """Kill the workers."""
        for member in self._members:
            self._ray.kill(member.actor)
        self._members = []

    def train(self, trial: Trial, handler: Handler, stop: Callable[[], bool]) -> Ended:
        """Train until the end, a failure of the training's own, or a pause that was asked for.

        Args:
            trial: what is trained.
            handler: keeps checkpoints and events.
            stop: asked often; once it says so, the training is saved and ends as "paused".
        """
        fruitless, last_step, workers = 0, -1, 0
        while True:
            members = self._assemble(handler, stop)
            if members is None:
                return Ended("paused", max(0, last_step))
            found = handler.checkpoint()
            step, content = found if found is not None else (0, None)
            if workers and workers != len(members):
                handler.event("resized", step, "", f"{workers} to {len(members)} workers")
            workers, fruitless = len(members), 0 if step > last_step else fruitless + 1
            last_step = max(last_step, step)
            ended = self._round(trial, members, content, handler, stop)
            if ended.kind in ("done", "failed"):
                return ended
            if ended.kind == "paused" and stop():
                return ended
            if ended.kind == "corrupted":
                handler.rewind()
            if fruitless >= _MAX_FRUITLESS:
                return Ended("failed", last_step, error=f"WorkersLost: {fruitless} times in a row; {ended.error or ''}")

    # Who takes part

    def _start(self) -> _Member:
        options: dict[str, Any] = {}
        if self._quarantined:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self._quarantined))})"}
        actor = self._actor_class.options(**options).remote(self._setup, *self._shared)
        return _Member(actor, actor.describe.remote())

    def _assemble(self, handler: Handler, stop: Callable[[], bool]) -> list[_Member] | None:
        """Wait for the workers: for all of them a while, for enough of them as long as it takes."""
        began, first = time.monotonic(), not self._begun
        while not stop():
            self._greet(0)
            ready = [member for member in self._members if member.started]
            enough = len(ready) >= self._settings.min_workers
            # Who goes on does not wait for more; who begins gives the others the time that their setup takes.
            if len(ready) == len(self._members) or (enough and (not first or time.monotonic() - began > _START_S)):
                self._begun = True
                return ready
            handler.waiting(len(ready), self._settings.min_workers if not first else self._settings.workers)
            self._greet(_WAIT_S)
        return None

    def _greet(self, seconds: float) -> bool:
        """Take up workers that have finished their setup; returns whether there were any."""
        starting = {member.ready: member for member in self._members if not member.started}
        if not starting:
            return False
        ready, _ = self._ray.wait(list(starting), num_returns=len(starting), timeout=seconds)
        for ref in ready:
            member = starting[ref]
            try:
                member.host, member.node, member.device = self._ray.get(ref)
            except self._ray.exceptions.RayError as error:
                self._setup_deaths += 1
                if self._setup_deaths >= _MAX_SETUP_DEATHS or "creation task" in str(error):
                    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
                    raise InputError(f"workers: none could be set up: {lines[-1]}") from error
                self._replace(member)
                continue
            self._setup_deaths, member.ready = 0, None
        return bool(ready)

    def _replace(self, member: _Member) -> None:
        self._ray.kill(member.actor)
        self._members.remove(member)
        self._members.append(self._start())

    # One stretch of training

    def _round(
        self, trial: Trial, members: list[_Member], content: bytes | None, handler: Handler, stop: Callable[[], bool]
    ) -> Ended:
        try:
            address, port = self._ray.get(members[0].actor.meeting_point.remote(), timeout=_ANSWER_S)
        except (self._ray.exceptions.RayError, TimeoutError) as error:
            self._bury(members[0], str(error), handler)
            return Ended("cut", error=str(error))
        checkpoint = self._ray.put(content)
        runs = {
            m.actor.train.remote(trial, Place(rank, len(members), address, port), checkpoint): m
            for rank, m in enumerate(members)
        }
        this = _Round(members, runs, time.monotonic())
        listening = self._listen(members[0])
        while not this.over:
            starting = [member.ready for member in self._members if not member.started]
            refs = [*this.runs, *([listening] if listening is not None else []), *starting]
            ready, rest = self._ray.wait(refs, num_returns=1, timeout=_WAIT_S)
            if ready and rest:  # all that is ready: who speaks without end would hide that others have ended
                ready += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
            for ref in ready:
                if ref == listening:
                    heard = self._hear(ref, len(members), handler)
                    listening = self._listen(members[0]) if heard else None
                elif ref in this.runs:
                    self._end(this, ref)
            self._mind(this, stop)
        if listening is not None and 0 in this.ended and self._hear(listening, len(members), handler):
            # That may have been answered before the end: what rank 0 said last may still lie in its mailbox.
            rest = members[0].actor.take.options(concurrency_group=CONTROL).remote(0.0)
            self._hear(rest, len(members), handler)
        return self._judge(this, handler)

    def _listen(self, first: _Member) -> Any:
        return first.actor.take.options(concurrency_group=CONTROL).remote(_TAKE_S)

    def _hear(self, ref: Any, workers: int, handler: Handler) -> bool:
        """Hand on what rank 0 said; returns whether it lives."""
        try:
            messages = self._ray.get(ref, timeout=_TAKE_S + _ANSWER_S)
        except (self._ray.exceptions.RayError, TimeoutError):
            return False  # the end of its run tells better
        for message in messages:
            handler.hear(message, workers)
        return True

    def _end(self, this: _Round, ref: Any) -> None:
        member = this.runs.pop(ref)
        try:
            ended: Ended = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            this.lost.append((member, " ".join(str(error).split())))
            this.died = True
            this.broken_since = this.broken_since or time.monotonic()
            return
        this.ended[this.members.index(member)] = ended
        if ended.kind not in ("done", "paused", "corrupted"):
            this.broken_since = this.broken_since or time.monotonic()

    def _mind(self, this: _Round, stop: Callable[[], bool]) -> None:
        """Let the training pause where there is a reason, and give up on workers that do not answer."""
        now, pause = time.monotonic(), this.members[0].actor.pause.options(concurrency_group=CONTROL).remote
        if this.pausing_since is None:
            grown = self._greet(0) or len([m for m in self._members if m.started]) > len(this.members)
            if stop() or self._leaving(this, now) or (grown and now - this.began > _GROW_S):
                pause()
                this.pausing_since = now
        elif stop():
            pause()  # once more: the training may have begun after the first time
            if now - this.pausing_since > self._settings.grace:
                self._abandon(this, list(this.runs))
        patience = _CUT_S if this.died else _BROKEN_S
        if this.broken_since is not None and this.runs and now - this.broken_since > patience:
            self._abandon(this, self._silent(this.runs) or list(this.runs))

    def _leaving(self, this: _Round, now: float) -> bool:
        """Whether a worker's node is being taken away: the training then goes on without it, before it is lost."""
        if now - this.looked_at < _LOOK_S:
            return False
        this.looked_at = now
        draining = set(self._ray._private.state.state.get_draining_nodes())
        for member in [m for m in this.members if m.node in draining and not m.leaving]:
            member.leaving = True
        return any(member.leaving for member in this.members)

    def _silent(self, runs: dict[Any, _Member]) -> list[Any]:
        """Find the runs whose workers do not answer."""
        pings = {m.actor.ping.options(concurrency_group=CONTROL).remote(): ref for ref, m in runs.items()}
        _, silent = self._ray.wait(list(pings), num_returns=len(pings), timeout=_PING_S)
        return [pings[ping] for ping in silent]

    def _abandon(self, this: _Round, refs: list[Any]) -> None:
        for ref in refs:
            this.lost.append((this.runs.pop(ref), _NO_ANSWER))

    def _judge(self, this: _Round, handler: Handler) -> Ended:
        """Say how a stretch ended, and replace who was lost in it."""
        for member, why in this.lost:
            if this.died and why == _NO_ANSWER:
                handler.event(
                    "worker_restarted", None, member.node, f"on {member.host}: it waited for one that is gone"
                )
                self._replace(member)
            else:
                self._bury(member, why, handler)
        if this.died or (this.lost and not any(ended.kind == "failed" for ended in this.ended.values())):
            return next((e for e in this.ended.values() if e.kind == "cut"), Ended("cut", error="a worker was lost"))
        kinds = {ended.kind for ended in this.ended.values()}
        for member in [m for m in self._members if m.leaving]:
            handler.event("node_draining", None, member.node, f"on {member.host}: the training goes on without it")
            self._replace(member)
        for kind in ("corrupted", "failed", "cut", "paused"):
            if kind in kinds:
                ended = next(this.ended[rank] for rank in sorted(this.ended) if this.ended[rank].kind == kind)
                if kind == "corrupted":
                    self._quarantine(this, ended, handler)
                if kind == "cut":  # everybody lives: a connection broke
                    handler.event("connection_lost", None, "", (ended.error or "").splitlines()[0])
                return ended
        return this.ended[0]

    def _bury(self, member: _Member, why: str, handler: Handler) -> None:
        gone = any(info["NodeID"] == member.node and not info["Alive"] for info in self._ray.nodes())
        kind = "node_lost" if gone else "worker_lost"
        why = re.sub(r"class_name: .*? ip: \S+ ", "", why)[:_DETAIL_CHARACTERS]
        handler.event(kind, None, member.node, f"on {member.host} ({why})")
        if member in self._members:
            self._replace(member)

    def _quarantine(self, this: _Round, ended: Ended, handler: Handler) -> None:
        """Take the nodes of those to blame out of service; where it is undecided, only say so."""
        suspects = [this.members[rank] for rank in ended.suspects]
        names = ", ".join(f"{member.host} ({member.node[:8]})" for member in suspects)
        if len(suspects) != 1:
            handler.event("corrupted", ended.step, "", f"{ended.error}; undecided between {names}")
            return
        node = suspects[0].node
        handler.event("corrupted", ended.step, node, f"{ended.error}; {names} is taken out of service")
        self._quarantined.add(node)
        for member in [m for m in self._members if m.started and m.node == node]:
            self._replace(member)
