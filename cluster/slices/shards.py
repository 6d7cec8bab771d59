"""What is asked of a slice and what it answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


class Shard(NamedTuple):
    """A part of a step's batch. What it holds follows from `step` and `index` alone, not from who computes it.

    Args:
        step: of the training, from 0.
        number: of the shard in the step's batch, from 0.
    """

    step: int
    number: int


class Part(NamedTuple):
    """A shard's part of a step.

    Args:
        gradient: sum over the shard's examples, [P].
        loss: sum over the shard's examples.
        examples: how many.
    """

    gradient: Vector
    loss: float
    examples: int


ComputePart = Callable[[Vector, Shard], Part]
"""Computes a shard's part at parameters [P]."""


class Fault(Protocol):
    """Breaks what a slice computes."""

    def __call__(self, slice_id: int, shard: Shard, attempt: int, gradient: Vector) -> Vector:
        """Return what the broken slice takes the gradient to be, at its first attempt (0) or a later one."""


class Asked(NamedTuple):
    """One item for a slice: which shard, which slice, and how often this step was computed before."""

    shard: Shard
    slice_id: int
    attempt: int


class Answered(NamedTuple):
    """A part, and the digest of its gradient as the slice had it."""

    part: Part
    digest: str


def digest(gradient: Vector) -> str:
    """SHA-256 of a gradient's bytes; equal digests are equal bits, and -0.0 differs from 0.0."""
    return hashlib.sha256(np.ascontiguousarray(gradient).tobytes()).hexdigest()


def slice_task(
    make: Callable[..., ComputePart], fault: Fault | None, *shared: object
) -> Callable[[Vector, Asked], Answered]:
    """Set up a slice: what `cluster.crew.Crew` calls once on each worker.

    Args:
        make: called with `shared`; returns what computes a shard's part.
        fault: breaks gradients on purpose; None: nothing does.
        *shared: e.g. the data.
    """
    compute = make(*shared)

    def task(parameters: Vector, asked: Asked) -> Answered:
        part = compute(parameters, asked.shard)
        if fault is not None:
            part = part._replace(gradient=fault(asked.slice_id, asked.shard, asked.attempt, part.gradient))
        return Answered(part, digest(part.gradient))

    return task
