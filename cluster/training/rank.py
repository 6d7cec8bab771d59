"""A worker of a gang: what it is told, what it reports, and how its part of a training run can end."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from cluster.trial import Trial
from cluster.worker import Tables, describe_error

CONTROL = "control"
"""Concurrency group of the calls that are answered beside a running training."""


@dataclass(frozen=True)
class Place:
    """A worker's place in a training run.

    Args:
        rank: its number, from 0.
        world: how many take part.
        address: host of rank 0, where they meet.
        port: free port of that host.
    """

    rank: int = 0
    world: int = 1
    address: str = "127.0.0.1"
    port: int = 0


class Message(NamedTuple):
    """What rank 0 has to say: kind "log", "evaluation", "checkpoint", "probe", "verified" or "model", at a step."""

    kind: str
    step: int
    content: Any


class Ended(NamedTuple):
    """How a worker's part of a training run ended.

    Args:
        kind: "done", "paused", "failed" by itself, "cut" because another worker went, or "corrupted": workers disagreed.
        step: parameter updates done, where that is known.
        tables: what a run that is done has measured.
        error: of "failed" and "cut".
        suspects: of "corrupted": ranks that may be to blame.
    """

    kind: str
    step: int = 0
    tables: Tables | None = None
    error: str | None = None
    suspects: tuple[int, ...] = ()


class Mailbox:
    """Between a training and the driver that follows it; safe in threads.

    Args:
        hear: takes messages at once, within this process; None: they wait until `take` fetches them.
        pausing: within this process: whether the training is to pause; None: it is once `pause` was called.
    """

    def __init__(
        self, hear: Callable[[Message], None] | None = None, pausing: Callable[[], bool] | None = None
    ) -> None:
        self._hear, self._asks = hear, pausing
        self._messages: list[Message] = []
        self._pausing = self._closed = False
        self._changed = threading.Condition()

    def put(self, message: Message) -> None:
        """Say something; returns at once."""
        if self._hear is not None:
            self._hear(message)
            return
        with self._changed:
            self._messages.append(message)
            self._changed.notify_all()

    def take(self, seconds: float) -> list[Message]:
        """Fetch what was said since the last call, after waiting for the first of it or for the end."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._messages) or self._closed, seconds)
            messages, self._messages = self._messages, []
            return messages

    def open(self) -> None:
        """Begin a training."""
        self._pausing = self._closed = False

    def close(self) -> None:
        """End it: who waits for more is answered at once, so that nobody takes what the next training says."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def pause(self) -> None:
        """Ask the training to pause."""
        self._pausing = True

    @property
    def pausing(self) -> bool:
        """Whether the training is to pause."""
        return self._pausing or (self._asks is not None and self._asks())


class RankTask(Protocol):
    """Does a worker's part of a training run."""

    def __call__(self, trial: Trial, place: Place, mailbox: Mailbox, checkpoint: bytes | None) -> Ended:
        """Train from a checkpoint, or from the beginning; what it raises is a failure of the trial."""


RankSetup = Callable[..., RankTask]
"""Called once a worker with the shared objects."""


def attempt(task: RankTask, trial: Trial, place: Place, mailbox: Mailbox, checkpoint: bytes | None) -> Ended:
    """Do a worker's part of a training run and turn every way to end into a value."""
    try:
        return task(trial, place, mailbox, checkpoint)
    except Exception as error:
        kind = "cut" if place.world > 1 and is_broken_connection(error) else "failed"
        return Ended(kind, error=describe_error(error))


_BROKEN = (
    *("connection closed by peer", "connection reset", "connection refused", "broken pipe", "socket timeout"),
    "address already in use",  # another program was quicker: the next round meets elsewhere
    *("gloo", "nccl", "timed out", "store->get", "process group", "connect failure", "failed to connect"),
)


def is_broken_connection(error: BaseException) -> bool:
    """Whether an error is what a worker sees of it when another one goes."""
    seen: BaseException | None = error
    while seen is not None:
        text = f"{type(seen).__name__}: {seen}".lower()
        if type(seen).__name__.startswith("Dist") or (
            isinstance(seen, RuntimeError | OSError | TimeoutError | ValueError)
            and any(sign in text for sign in _BROKEN)
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def device_name() -> str:
    """What this process trains on: its first GPU's name, or cpu; torch is asked where it is imported already."""
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name(0)) if torch is not None and torch.cuda.is_available() else "cpu"


class Rank:
    """A worker of a gang, as a Ray actor. It has imported its libraries and holds the data before its first training.

    Args:
        setup: builds the task.
        *shared: the objects `setup` takes.
    """

    def __init__(self, setup: RankSetup, *shared: Any) -> None:
        self._task = setup(*shared)
        self._mailbox = Mailbox()

    def describe(self) -> tuple[str, str, str]:
        """Return (host name, Ray node id, device) of this worker."""
        import ray

        return socket.gethostname(), ray.get_runtime_context().get_node_id(), device_name()

    def meeting_point(self) -> tuple[str, int]:
        """Return an address of this worker's host and a free port there."""
        import ray

        address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        with socket.socket() as probe:
            probe.bind((address, 0))
            return address, int(probe.getsockname()[1])

    def train(self, trial: Trial, place: Place, checkpoint: bytes | None) -> Ended:
        """Do this worker's part of a training run."""
        self._mailbox.open()
        try:
            return attempt(self._task, trial, place, self._mailbox, checkpoint)
        finally:
            self._mailbox.close()

    def take(self, seconds: float) -> list[Message]:
        """Fetch what the training says."""
        return self._mailbox.take(seconds)

    def pause(self) -> None:
        """Ask the training to pause."""
        self._mailbox.pause()

    def ping(self) -> float:
        """Show that this worker lives."""
        return time.time()
