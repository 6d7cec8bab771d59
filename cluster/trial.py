"""The trial: one unit of work, frozen and hashable, whose identity and random streams derive from its content alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)

Scalar = bool | int | float | str | None


def canonical_json(value: Any) -> str:
    """Serialise to JSON with sorted keys and no spaces: equal values give equal text.

    Raises:
        ValueError: for NaN or infinity, which have no JSON form and would make two equal trials differ.
    """
    return _ENCODER.encode(value)


def derive_seed(*parts: Scalar) -> int:
    """Derive a 63-bit seed from a tuple of scalars by SHA-256: stable across processes, machines and versions."""
    digest = hashlib.sha256(canonical_json(list(parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Trial:
    """One method x dataset x held-out environments x hyperparameters x seed x budget.

    Args:
        method: name of the method.
        dataset: identity of the dataset: its name, and a fingerprint of its content where the name does not fix it.
        held_out: environments kept out of training, sorted.
        hyperparameters: every hyperparameter as canonical JSON, defaults included.
        seed: the trial seed; repetitions of an otherwise equal trial differ only here.
        budget: what the trial may spend and when it is evaluated, as canonical JSON, e.g. steps and checkpoint_every.
    """

    method: str
    dataset: str
    held_out: tuple[str, ...]
    hyperparameters: str
    seed: int
    budget: str

    @classmethod
    def create(
        cls,
        method: str,
        dataset: str,
        held_out: tuple[str, ...] | list[str] = (),
        hyperparameters: Mapping[str, Scalar] | None = None,
        seed: int = 0,
        budget: Mapping[str, Scalar] | None = None,
    ) -> Trial:
        """Build a trial from plain mappings, in canonical form (held-out names sorted, JSON keys sorted)."""
        return cls(
            method,
            dataset,
            tuple(sorted(held_out)),
            canonical_json(dict(hyperparameters or {})),
            int(seed),
            canonical_json(dict(budget or {})),
        )

    @cached_property
    def trial_id(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the trial's canonical JSON."""
        content = [self.method, self.dataset, list(self.held_out), self.hyperparameters, self.seed, self.budget]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]

    def stream(self, name: str) -> int:
        """Return the seed of one of the trial's named random streams (63 bits); it depends on the trial alone."""
        return derive_seed(self.trial_id, name)
