"""One controller that sees every gradient: deals shards, sums in shard order, replays, excludes, and counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from cluster.crew import Crew, WorkersLostError, deal
from cluster.errors import InputError
from cluster.slices.corruption import Detector, find_culprits, mean_loss
from cluster.slices.faults import Kill
from cluster.slices.shards import Answered, Asked, ComputePart, Fault, Shard, Vector, slice_task

Policy = Literal["redeal", "drop"]
POLICIES = ("redeal", "drop")

_MOST_REDOS = 8


@dataclass
class StepReport:
    """What a step gave and what it took.

    Args:
        step: its number.
        gradient: mean over the examples that were computed, [P].
        loss: mean over the same.
        examples: how many.
        rounds: shards that the busiest slice computed, replays left out.
        replays: how often the step was computed again as a whole.
        suspicion: what made it so; "" where nothing did.
        found_by: how the culprits were found; see `find_culprits`.
        excluded: slices that left because they computed wrongly.
        lost: slices that died while they computed.
    """

    step: int
    gradient: Vector
    loss: float
    examples: int
    rounds: int
    replays: int = 0
    suspicion: str = ""
    found_by: str = ""
    excluded: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()


class _LostMeanwhileError(Exception):
    """A slice died while a step was computed again: whatever was found out does not count."""


@dataclass
class _Tally:
    rounds: int = 0
    replays: int = 0
    suspicion: str = ""
    found_by: str = ""
    excluded: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)


class ElasticController:
    """Computes the gradients of steps on slices that come and go; a context manager.

    With the policy "redeal" the shards of lost slices are dealt to the others, and the gradient is the sum over all shards
    in their order: the parameters of a run do not depend on which slices lived, to the bit. Where shards divide evenly no
    more a step takes ceil(shards / slices) rounds. With "drop" a step keeps its time: the shards of lost slices are left
    out and the mean is taken over what is left, which changes the run.

    Args:
        make: called with `shared` on each slice; returns what computes a shard's part.
        shared: e.g. the data.
        slices: how many at the start; numbered from 0.
        shards: of each step's batch.
        policy: what becomes of a lost slice's shards.
        detector: finds steps that look wrong; None: none is looked at.
        fault: breaks slices on purpose.
        in_process: compute here, without Ray; None does so where this process is not connected to Ray.

    Raises:
        InputError: fewer than one slice or shard, an unknown policy, "drop" with shards that slices do not divide.

    Example:
        >>> import numpy as np
        >>> from cluster.slices.shards import Part
        >>> def make():
        ...     return lambda parameters, shard: Part(parameters - shard.number, 0.0, 1)
        >>> with ElasticController(make, slices=2, shards=4, in_process=True) as controller:
        ...     controller.lose(1)
        ...     controller.step(np.zeros(1), 0).gradient
        array([-1.5])
    """

    def __init__(
        self,
        make: Callable[..., ComputePart],
        shared: Sequence[Any] = (),
        *,
        slices: int,
        shards: int,
        policy: Policy = "redeal",
        detector: Detector | None = None,
        fault: Fault | None = None,
        in_process: bool | None = None,
    ) -> None:
        for name, value in {"slices": slices, "shards": shards}.items():
            if value < 1:
                raise InputError(f"{name}: is {value}; give 1 or more")
        if policy not in POLICIES:
            raise InputError(f"policy: unknown {policy!r}; choose from {', '.join(POLICIES)}")
        if policy == "drop" and shards % slices:
            raise InputError(f"shards: {shards} cannot be dealt evenly to {slices} slices; give a multiple")
        self._shards, self._policy, self._detector = shards, policy, detector
        self._crew = Crew(partial(slice_task, make, fault), shared, slices, in_process=in_process)
        if isinstance(fault, Kill) and self._crew.in_process:
            raise InputError("fault: Kill would end this process; connect to Ray, so that slices have their own")
        self._owner_at_start = deal(range(shards), self._crew.members)

    def __enter__(self) -> ElasticController:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def slices(self) -> list[int]:
        """Numbers of the slices that live."""
        return self._crew.members

    def lose(self, slice_id: int) -> None:
        """Take a slice away, as a failure does."""
        self._crew.lose(slice_id)

    def join(self) -> int:
        """Add a slice; returns its number. Under "drop" it takes over the shards of the slice that was lost first."""
        number = self._crew.join()
        if self._policy == "drop":
            orphans = [owner for owner in self._owner_at_start if owner not in self._crew.members]
            if orphans:
                self._owner_at_start[number] = self._owner_at_start.pop(orphans[0])
        return number

    def close(self) -> None:
        """Let the slices go."""
        self._crew.close()

    def step(self, parameters: Vector, step: int) -> StepReport:
        """Compute a step's gradient; the parameters are the caller's and stay as they are.

        Args:
            parameters: [P].
            step: its number, which decides what the shards hold.

        Raises:
            WorkersLostError: no slice is left.
        """
        tally = _Tally()
        for _ in range(_MOST_REDOS):
            answers, owners = self._compute(parameters, step, tally)
            if self._detector is None:
                return self._report(step, answers, tally)
            suspicion = self._detector.suspicion(step, answers, owners)
            tally.suspicion = tally.suspicion or suspicion
            # After an exclusion the step looks as it should, or is looked at again; one audit a step is enough.
            if not suspicion or (suspicion == "audit" and tally.excluded):
                return self._report(step, answers, tally)
            try:
                culprits, found_by = find_culprits(
                    answers, owners, self.slices, partial(self._again, parameters, step, tally)
                )
            except _LostMeanwhileError:
                continue
            tally.found_by = tally.found_by or found_by
            if not culprits and found_by != "transit":
                return self._report(step, answers, tally)  # all agree, or nobody can say who is right
            for culprit in sorted(culprits & set(self.slices)):
                self._crew.lose(culprit)
                tally.excluded.append(culprit)
        raise WorkersLostError(f"step {step}: computed {_MOST_REDOS} times, and each time something was wrong")

    def _owners(self) -> dict[int, int]:
        """The slice of each shard that is computed."""
        if not self.slices:
            raise WorkersLostError("no slice is left")
        if self._policy == "redeal":
            dealt = deal(range(self._shards), self.slices)
        else:
            dealt = {owner: given for owner, given in self._owner_at_start.items() if owner in self.slices}
        return {index: owner for owner, given in dealt.items() for index in given}

    def _compute(self, parameters: Vector, step: int, tally: _Tally) -> tuple[dict[int, Answered], dict[int, int]]:
        """Compute all shards, those of slices that die meanwhile by others; returns the answers and who gave them."""
        answers: dict[int, Answered] = {}
        owners: dict[int, int] = {}
        while True:
            wanted = self._owners()
            todo = {index: owner for index, owner in wanted.items() if index not in answers}
            if not todo:
                break
            given = self._call(parameters, step, tally.replays, todo, tally)
            answers.update(given)
            owners.update({index: todo[index] for index in given})
            if self._policy == "drop":
                break
        # In shard order, whatever order they came in: a sum in another order has other bits.
        return {index: answers[index] for index in sorted(answers)}, owners

    def _again(self, parameters: Vector, step: int, tally: _Tally, owners: Mapping[int, int]) -> dict[int, Answered]:
        tally.replays += 1
        found = self._call(parameters, step, tally.replays, owners, tally, counted=False)
        if len(found) < len(owners):
            raise WorkersLostError(
                f"step {step}: slices were lost while it was computed again; go on from the last state"
            )
        return found

    def _call(
        self,
        parameters: Vector,
        step: int,
        attempt: int,
        owners: Mapping[int, int],
        tally: _Tally,
        counted: bool = True,
    ) -> dict[int, Answered]:
        dealt: dict[int, list[int]] = {}
        for index, owner in owners.items():
            dealt.setdefault(owner, []).append(index)
        asked = {owner: [Asked(Shard(step, n), owner, attempt) for n in given] for owner, given in dealt.items()}
        answer = self._crew.call(parameters, asked)
        tally.lost += answer.lost
        if counted:
            tally.rounds += max(len(given) for given in dealt.values())
        return {
            index: found
            for owner, results in answer.results.items()
            for index, found in zip(dealt[owner], results, strict=True)
        }

    def _report(self, step: int, answers: Mapping[int, Answered], tally: _Tally) -> StepReport:
        if not answers:
            raise WorkersLostError("no slice is left")
        if self._detector is not None:
            self._detector.accept(answers)
        gradients = [answer.part.gradient for answer in answers.values()]
        total = gradients[0].copy()
        for gradient in gradients[1:]:
            total += gradient
        examples = sum(answer.part.examples for answer in answers.values())
        return StepReport(
            step,
            total / max(1, examples),
            mean_loss(answers),
            examples,
            tally.rounds,
            tally.replays,
            tally.suspicion,
            tally.found_by,
            tuple(tally.excluded),
            tuple(tally.lost),
        )
