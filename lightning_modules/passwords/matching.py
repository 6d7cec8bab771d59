"""How a schema's steps are tied to a response, or to any other one, in a solver's model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from lightning_modules.passwords.schemas import Algebra, Step, Value

_NONE = 10  # where a response has no digit


class Model(Algebra, Protocol):
    """An algebra of unknowns that can be required to be something."""

    def unknown(self, values: int) -> Value:
        """A new unknown from 0 to values - 1."""

    def all_different(self, values: Sequence[Value]) -> None:
        """Require unknowns to differ, each from each."""

    def require(self, value: Value, allowed: Collection[int]) -> None:
        """Require a value to be one of those allowed."""

    def require_any(self, flags: Sequence[Value]) -> None:
        """Require one of several values, each 0 or 1, to be 1."""


def _faults(model: Model, steps: Iterable[Step], response: str) -> list[Value]:
    """Flags that are 1 where the steps part from a response: one a spoken digit, one for the length.

    Where it is not known which steps speak, a counter runs along: a step's digit is held against the response's digit there.
    """
    digits = [int(symbol) for symbol in response]
    flags, spoken_before = [], 0
    for digit, spoken in steps:
        table = np.array(digits + [_NONE] * (_at_most(spoken_before) + 1))

        def parts(digit: Any, spoken: Any, before: Any, table: Any = table) -> Any:
            return (spoken != 0) & (table[before] != digit)

        flags.append(model.apply(parts, digit, spoken, spoken_before))
        spoken_before = model.apply(lambda before, spoken: before + (spoken != 0), spoken_before, spoken)
    return [*flags, model.apply(lambda count: count != len(digits), spoken_before)]


def _at_most(value: Value) -> int:
    return value if isinstance(value, int) else max(value.values)


def tie(model: Model, steps: Iterable[Step], response: str) -> None:
    """Require that the steps give the response."""
    for flag in _faults(model, steps, response):
        model.require(flag, (0,))


def part(model: Model, steps: Iterable[Step], response: str) -> None:
    """Require that the steps give any other response."""
    model.require_any(_faults(model, steps, response))
