"""A crew of warm workers that computes for one caller, step after step: rollouts of a policy, shards of a gradient.

A plan's trials go through `cluster.executor`; a crew serves inside one of them. Its workers reserve no CPU by default,
because the trial that calls them has one and waits. Who computed an item, and how many workers there are, is no part of
a result: results come in the order of the items, and what a lost worker had is dealt to the others.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from cluster.errors import InputError

CrewTask = Callable[[Any, Any], Any]
"""Computes one item: task(common, item)."""

CrewSetup = Callable[..., CrewTask]
"""Called once a worker with the shared objects."""

_MOST_LOSSES = 3
"""Workers that one item may take down before it is to blame."""


class WorkersLostError(Exception):
    """No worker is left, or an item takes every worker down that it is given to."""


class CrewWorker:
    """Computes items, one after another; the same class as a Ray actor and in the calling process.

    Args:
        setup: builds the task.
        *shared: the objects `setup` takes.
    """

    def __init__(self, setup: CrewSetup, *shared: Any) -> None:
        self._task = setup(*shared)

    def compute(self, common: Any, items: Sequence[Any]) -> list[Any]:
        """Compute items in order."""
        return [self._task(common, item) for item in items]


@dataclass(frozen=True)
class Answer:
    """What came of a call.

    Args:
        results: of each item, in order, by worker; workers that were lost are not in it.
        lost: workers that died, with Ray's words.
    """

    results: dict[int, list[Any]] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)


class Crew:
    """Workers that stay from one call to the next; a context manager.

    Args:
        setup: builds each worker's task; must be picklable, as `shared` and the items must.
        shared: what `setup` takes, put once into the object store.
        workers: how many.
        cpus_per_worker: CPUs each reserves.
        in_process: compute in this process, without Ray; None does so where this process is not connected to Ray.

    Raises:
        InputError: fewer than one worker, or the setup fails.

    Example:
        >>> with Crew(lambda offset: lambda common, item: common * item + offset, [1], workers=2, in_process=True) as crew:
        ...     crew.run(10, [1, 2, 3])
        [11, 21, 31]
    """

    def __init__(
        self,
        setup: CrewSetup,
        shared: Sequence[Any] = (),
        workers: int = 2,
        cpus_per_worker: float = 0,
        in_process: bool | None = None,
    ) -> None:
        if workers < 1:
            raise InputError(f"workers: is {workers}; a crew needs 1 or more")
        ray = sys.modules.get("ray")
        connected = ray is not None and bool(ray.is_initialized())
        if in_process is False and not connected:
            raise InputError("in_process: this process is not connected to Ray; connect first, or leave it out")
        self._ray: Any = None if in_process or not connected else ray
        self._next = 0
        self._members: dict[int, Any] = {}
        if self._ray is None:
            # One task serves all: a crew's results do not depend on who computes.
            self._here = CrewWorker(setup, *shared)
        else:
            self._setup = self._ray.put(setup)
            self._shared = [self._ray.put(item) for item in shared]
            self._actor_class = self._ray.remote(num_cpus=cpus_per_worker, max_restarts=0)(CrewWorker)
        for _ in range(workers):
            self.join()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def members(self) -> list[int]:
        """Numbers of the living workers, ascending; a number is never given twice."""
        return sorted(self._members)

    @property
    def in_process(self) -> bool:
        """Whether everything is computed in this process."""
        return self._ray is None

    def join(self) -> int:
        """Add a worker; returns its number. It is warm after its first call."""
        number = self._next
        self._next += 1
        self._members[number] = None if self._ray is None else self._actor_class.remote(self._setup, *self._shared)
        return number

    def lose(self, number: int) -> None:
        """Kill a worker.

        Raises:
            InputError: there is none of that number.
        """
        if number not in self._members:
            raise InputError(f"number: no worker {number} is left; there are {', '.join(map(str, self.members))}")
        actor = self._members.pop(number)
        if self._ray is not None:
            self._ray.kill(actor)

    def close(self) -> None:
        """Kill all workers."""
        for number in self.members:
            self.lose(number)

    def call(self, common: Any, dealt: Mapping[int, Sequence[Any]]) -> Answer:
        """Let given workers compute given items, all at once.

        Args:
            common: what every item needs, put once into the object store.
            dealt: items by worker.

        Raises:
            Exception: what the task itself raised, as it was.
            InputError: a worker's setup failed.
        """
        answer = Answer()
        if self._ray is None:
            for number, items in dealt.items():
                answer.results[number] = self._here.compute(common, items)
            return answer
        everywhere = self._ray.put(common)
        calls = {n: self._members[n].compute.remote(everywhere, list(items)) for n, items in dealt.items()}
        for number, call in calls.items():
            try:
                answer.results[number] = self._ray.get(call)
            except self._ray.exceptions.RayActorError as error:
                if "creation task" in str(error):
                    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
                    raise InputError(f"workers: cannot be set up: {lines[-1]}") from error
                self._members.pop(number, None)
                answer.lost[number] = " ".join(str(error).split())
            except self._ray.exceptions.RayTaskError as error:
                raise cast(BaseException, error.cause if isinstance(error.cause, Exception) else error) from error
        return answer

    def run(self, common: Any, items: Sequence[Any]) -> list[Any]:
        """Compute items by whoever is there; lost workers are replaced, and what they had is dealt again.

        Args:
            common: what every item needs, e.g. the weights of a policy.
            items: what is computed.

        Returns:
            The result of each item, in their order.

        Raises:
            Exception: what the task itself raised.
            WorkersLostError: an item took several workers down.
        """
        results: dict[int, Any] = {}
        losses: Counter[int] = Counter()
        while left := [n for n in range(len(items)) if n not in results]:
            dealt = deal(left, self.members)
            answer = self.call(common, {member: [items[n] for n in given] for member, given in dealt.items()})
            for member, found in answer.results.items():
                results.update(zip(dealt[member], found, strict=True))
            for member, why in answer.lost.items():
                losses.update(dealt[member])
                worst = max(dealt[member], key=lambda n: losses[n])
                if losses[worst] >= _MOST_LOSSES:
                    raise WorkersLostError(f"item {worst} took {losses[worst]} workers down, the last with: {why}")
                self.join()
        return [results[n] for n in range(len(items))]


def deal(items: Iterable[int], members: Sequence[int]) -> dict[int, list[int]]:
    """Deal items round and round to members, in the order of both; who gets none is left out.

    Raises:
        WorkersLostError: there are no members.
    """
    if not members:
        raise WorkersLostError("no worker is left")
    dealt: dict[int, list[int]] = {}
    for turn, item in enumerate(items):
        dealt.setdefault(members[turn % len(members)], []).append(item)
    return dealt
