"""Silent data corruption: which steps look wrong, and which slice is to blame.

Two phases, as we read the Gemini 2.5 report (arXiv 2507.06261, section 2.4), which does not say how they are split: the step is
computed again on the same slices, which shows faults that come and go; then every shard is computed by another slice,
and by a third where the two differ, which shows faults that stay.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cluster.errors import InputError
from cluster.slices.shards import Answered, digest

Compute = Callable[[Mapping[int, int]], Mapping[int, Answered]]
"""Computes shards again: from the slice of each shard to the answer of each shard."""


@dataclass
class Detector:
    """Says whether a step looks wrong.

    A gradient that is not finite, one whose largest entry stands out among the slices, bytes that are not those that the
    slice computed, or a loss that is far from the last ones. Faults too small for that are found by audits only: of N
    steps one is checked whatever it looks like, and an error between audits stays with probability 1 - 1 / N.

    Args:
        ratio: a slice's largest |gradient| per example over the median of all slices that is suspicious.
        deviations: of the step's loss from the mean of the last ones, in their standard deviations, that is suspicious;
            upwards only, for losses are meant to fall.
        window: losses that are remembered; fewer than these raise no suspicion.
        audit_every: steps from one audit to the next, the first at step 0; 0: none.

    Raises:
        InputError: a number out of range.
    """

    ratio: float = 4.0
    deviations: float = 8.0
    window: int = 20
    audit_every: int = 0
    _losses: deque[float] = field(default_factory=deque, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.ratio > 1:
            raise InputError(f"ratio: is {self.ratio}; give more than 1")
        if not self.deviations > 0:
            raise InputError(f"deviations: is {self.deviations}; give more than 0")
        if self.window < 2:
            raise InputError(f"window: is {self.window}; give 2 or more")
        if self.audit_every < 0:
            raise InputError(f"audit_every: is {self.audit_every}; give 0 or more")

    def suspicion(self, step: int, answers: Mapping[int, Answered], owners: Mapping[int, int]) -> str:
        """Say what is suspicious about a step; "" where nothing is.

        Args:
            step: its number.
            answers: by shard.
            owners: the slice of each shard.

        Raises:
            InputError: an answer without a digest.
        """
        largest: dict[int, float] = {}
        for index, answer in answers.items():
            if not answer.digest:
                raise InputError(
                    f"digest: shard {index} of slice {owners[index]} came without one; send one with each gradient"
                )
            if digest(answer.part.gradient) != answer.digest:
                return f"shard {index}: the bytes that came are not those that slice {owners[index]} computed"
            size = float(np.abs(answer.part.gradient).max()) / max(1, answer.part.examples)
            if not (math.isfinite(size) and math.isfinite(answer.part.loss)):
                return f"shard {index}: not finite"
            largest[owners[index]] = max(largest.get(owners[index], 0.0), size)
        median = float(np.median(list(largest.values())))
        worst = max(largest, key=lambda slice_id: largest[slice_id])
        if largest[worst] > self.ratio * median and len(largest) > 1:
            return f"slice {worst}: largest gradient entry {largest[worst]:.3g} against a median of {median:.3g}"
        if len(self._losses) == self.window:
            mean, std = float(np.mean(self._losses)), float(np.std(self._losses))
            loss = mean_loss(answers)
            if loss > mean + self.deviations * max(std, 1e-12 * abs(mean)):
                return f"loss {loss:.4g} against {mean:.4g} in the last {self.window} steps"
        if self.audit_every and step % self.audit_every == 0:
            return "audit"
        return ""

    def accept(self, answers: Mapping[int, Answered]) -> None:
        """Remember the loss of a step that was taken; one that is not finite teaches nothing."""
        loss = mean_loss(answers)
        if not math.isfinite(loss):
            return
        self._losses.append(loss)
        if len(self._losses) > self.window:
            self._losses.popleft()


def mean_loss(answers: Mapping[int, Answered]) -> float:
    """Loss per example of a step."""
    total = sum(answers[index].part.loss for index in sorted(answers))
    return total / max(1, sum(answer.part.examples for answer in answers.values()))


def find_culprits(
    answers: Mapping[int, Answered], owners: Mapping[int, int], slices: Sequence[int], compute: Compute
) -> tuple[set[int], str]:
    """Find the slices to blame for a step by computing it again.

    Args:
        answers: the step's, by shard.
        owners: the slice of each shard.
        slices: those that live.
        compute: computes shards again on slices of our choice.

    Returns:
        The slices, and how they were found: "repetition" (the same slice came to other bits), "vote" (another slice
        did, and a third one agreed with it), "undecided" (no third slice, or three results; nobody is blamed),
        "transit" (bytes changed on the way: nobody is blamed, and the step needs computing again), or "" where all agree.
    """
    # What the slice says it computed counts here, not what arrived.
    own = {index: answer.digest for index, answer in answers.items()}
    again = compute(owners)
    changed = {owners[index] for index in own if again[index].digest != own[index]}
    if changed:
        return changed, "repetition"
    following = {slices[n]: slices[(n + 1) % len(slices)] for n in range(len(slices))}
    others = {index: following[owners[index]] for index in own}
    second = compute(others)
    doubtful = [index for index in own if second[index].digest != own[index]]
    if not doubtful:
        arrived = all(digest(answer.part.gradient) == answer.digest for answer in answers.values())
        return set(), "" if arrived else "transit"
    if len(slices) < 3:
        return set(), "undecided"
    third = compute({index: following[others[index]] for index in doubtful})
    blamed = set()
    for index in doubtful:
        vote = third[index].digest
        if vote == own[index]:
            blamed.add(others[index])
        elif vote == second[index].digest:
            blamed.add(owners[index])
    return blamed, "vote" if blamed else "undecided"
