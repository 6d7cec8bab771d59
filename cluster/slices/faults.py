"""Faults put into slices on purpose. Whether one strikes follows from seed, slice, step and attempt alone."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import numpy as np

from cluster.errors import InputError
from cluster.slices.shards import Shard, Vector

_EXPONENT_BIT = 62


@dataclass(frozen=True)
class _Intermittent:
    """A fault that strikes a slice's step now and then, and a repetition independently.

    Args:
        slice_id: the broken slice.
        probability: of striking at a step.
        seed: of the strikes.
        first: step before which the slice is sound.
    """

    slice_id: int
    probability: float
    seed: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError(f"probability: is {self.probability}; give 0 to 1")

    def _strikes(self, slice_id: int, shard: Shard, attempt: int) -> np.random.Generator | None:
        """Return the strike's random numbers, or None where it does not strike."""
        if slice_id != self.slice_id or shard.step < self.first:
            return None
        generator = np.random.default_rng([self.seed, slice_id, shard.step, attempt])
        return generator if generator.random() < self.probability else None


@dataclass(frozen=True)
class BitFlip(_Intermittent):
    """Flips one bit of one number of a gradient.

    Args:
        bit: 62 is the top bit of the exponent: numbers below 2 become huge; 0 is the last bit of the fraction.
    """

    bit: int = _EXPONENT_BIT

    def __call__(self, slice_id: int, shard: Shard, attempt: int, gradient: Vector) -> Vector:
        """Return the gradient with the bit flipped, or as it was."""
        generator = self._strikes(slice_id, shard, attempt)
        if generator is None:
            return gradient
        broken = gradient.copy()
        broken.view(np.uint64)[generator.integers(len(broken))] ^= np.uint64(1) << np.uint64(self.bit)
        return broken


@dataclass(frozen=True)
class SignFlip(_Intermittent):
    """Turns the sign of one number of a gradient: nothing about its size looks suspicious."""

    def __call__(self, slice_id: int, shard: Shard, attempt: int, gradient: Vector) -> Vector:
        """Return the gradient with the sign turned, or as it was."""
        generator = self._strikes(slice_id, shard, attempt)
        if generator is None:
            return gradient
        broken = gradient.copy()
        broken[generator.integers(len(broken))] *= -1
        return broken


@dataclass(frozen=True)
class Kill:
    """Ends a slice's process in the middle of a step; for slices in processes of their own.

    Args:
        slice_id: the slice.
        step: in which it dies.
    """

    slice_id: int
    step: int

    def __call__(self, slice_id: int, shard: Shard, attempt: int, gradient: Vector) -> Vector:
        """Return the gradient, or nothing any more."""
        if slice_id == self.slice_id and shard.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
        return gradient


@dataclass(frozen=True)
class Slow:
    """Makes a slice wait before it answers; its gradients are right.

    Args:
        slice_id: the slice.
        seconds: for each shard.
    """

    slice_id: int
    seconds: float

    def __call__(self, slice_id: int, shard: Shard, attempt: int, gradient: Vector) -> Vector:
        """Return the gradient, late."""
        if slice_id == self.slice_id:
            time.sleep(self.seconds)
        return gradient


@dataclass(frozen=True)
class Stuck:
    """Adds a constant to one number of every gradient of a slice: a repetition on the same slice shows nothing.

    Args:
        slice_id: the broken slice.
        size: what is added.
        first: step before which the slice is sound.
    """

    slice_id: int
    size: float = 1e3
    first: int = 0

    def __call__(self, slice_id: int, shard: Shard, attempt: int, gradient: Vector) -> Vector:
        """Return the gradient with the constant added, or as it was."""
        if slice_id != self.slice_id or shard.step < self.first:
            return gradient
        broken = gradient.copy()
        broken[0] += self.size
        return broken
