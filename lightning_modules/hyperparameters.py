"""Hyperparameters: frozen dataclasses whose fields carry their default and, as an annotation, their random law.

Example:
    >>> @dataclass(frozen=True)
    ... class Ridge:
    ...     penalty: Annotated[float, LogUniform(1e-6, 1e2)] = 1.0
    >>> search_space(Ridge)
    {'penalty': LogUniform(low=1e-06, high=100.0)}
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lightning_modules.errors import InputError


@runtime_checkable
class Law(Protocol):
    """A random law a hyperparameter is drawn from."""

    def sample(self, generator: np.random.Generator) -> Any:
        """Draw one value."""


@dataclass(frozen=True)
class Uniform:
    """Uniform on [low, high]."""

    low: float
    high: float

    def sample(self, generator: np.random.Generator) -> float:
        """Draw one value."""
        return float(generator.uniform(self.low, self.high))


@dataclass(frozen=True)
class LogUniform:
    """10^U with U uniform: equal mass in every decade of [low, high]."""

    low: float
    high: float

    def sample(self, generator: np.random.Generator) -> float:
        """Draw one value."""
        return float(10 ** generator.uniform(math.log10(self.low), math.log10(self.high)))


@dataclass(frozen=True)
class IntUniform:
    """The integer part of a uniform draw on [low, high]."""

    low: float
    high: float

    def sample(self, generator: np.random.Generator) -> int:
        """Draw one value."""
        return int(generator.uniform(self.low, self.high))


@dataclass(frozen=True)
class IntLogUniform:
    """The integer part of a log-uniform draw on [low, high]."""

    low: float
    high: float

    def sample(self, generator: np.random.Generator) -> int:
        """Draw one value."""
        return int(10 ** generator.uniform(math.log10(self.low), math.log10(self.high)))


@dataclass(frozen=True)
class Choice:
    """One of a few values with equal chances."""

    values: tuple[Any, ...]

    def sample(self, generator: np.random.Generator) -> Any:
        """Draw one value."""
        return self.values[int(generator.integers(len(self.values)))]


def search_space(hyperparameters: type[Any]) -> dict[str, Law]:
    """Collect the random law of every field that has one, by field name in alphabetical order."""
    hints = typing.get_type_hints(hyperparameters, include_extras=True)
    space: dict[str, Law] = {}
    for field in sorted(dataclasses.fields(hyperparameters), key=lambda f: f.name):
        for note in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(note, Law):
                space[field.name] = note
    return space


def build(hyperparameters: type[Any], values: Mapping[str, Any], owner: str) -> Any:
    """Build a hyperparameters object from plain values, with the defaults for those not given.

    Args:
        hyperparameters: the dataclass.
        values: by field name.
        owner: name of the method, for the message.

    Raises:
        InputError: for an unknown name or a value of the wrong type or range.
    """
    hints = typing.get_type_hints(hyperparameters)
    names = [field.name for field in dataclasses.fields(hyperparameters)]
    checked = {}
    for name, value in values.items():
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names)}"
            raise InputError(f"hyperparameters: {owner} has no {name!r}; {hint}")
        kind = hints[name]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"hyperparameters: {name} of {owner} is {value!r}; give a {kind.__name__}")
        checked[name] = value
    return hyperparameters(**checked)
