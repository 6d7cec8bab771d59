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
import inspect
import math
import types
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

    def spec(self) -> dict[str, Any]:
        """The range as plain data: type, low, high, log and step of numbers, or choices."""


@dataclass(frozen=True)
class When:
    """A condition: the hyperparameter matters only where another one has one of these values.

    Example:
        >>> width: Annotated[int, IntLogUniform(16, 512), When("network", "mlp")] = 64
    """

    field: str
    values: tuple[Any, ...]

    def __init__(self, field: str, *values: Any) -> None:
        object.__setattr__(self, "field", field)
        object.__setattr__(self, "values", values)


@dataclass(frozen=True)
class Uniform:
    """Uniform on [low, high]; with a step on low, low + step, ... up to high."""

    low: float
    high: float
    step: float | None = None

    def sample(self, generator: np.random.Generator) -> float:
        """Draw one value."""
        if self.step is not None:
            drawn = self.low + self.step * int(generator.integers(_steps(self.low, self.high, self.step) + 1))
            return float(min(drawn, self.high))
        return float(generator.uniform(self.low, self.high))

    def spec(self) -> dict[str, Any]:
        """The range as plain data."""
        if self.step is None:
            return {"type": "float", "low": self.low, "high": self.high}
        last = self.low + self.step * _steps(self.low, self.high, self.step)
        high = self.high if math.isclose(last, self.high) else last
        return {"type": "float", "low": self.low, "high": high, "step": self.step}


@dataclass(frozen=True)
class LogUniform:
    """10^U with U uniform: equal mass in every decade of [low, high]."""

    low: float
    high: float

    def sample(self, generator: np.random.Generator) -> float:
        """Draw one value."""
        return float(10 ** generator.uniform(math.log10(self.low), math.log10(self.high)))

    def spec(self) -> dict[str, Any]:
        """The range as plain data."""
        return {"type": "float", "low": self.low, "high": self.high, "log": True}


@dataclass(frozen=True)
class IntUniform:
    """The integer part of a uniform draw on [low, high]; with a step one of low, low + step, ... up to high."""

    low: float
    high: float
    step: int | None = None

    def sample(self, generator: np.random.Generator) -> int:
        """Draw one value."""
        if self.step is not None:
            return int(self.low) + self.step * int(generator.integers(_steps(int(self.low), self.high, self.step) + 1))
        return int(generator.uniform(self.low, self.high))

    def spec(self) -> dict[str, Any]:
        """The range as plain data."""
        low = int(self.low)
        if self.step is None:
            return {"type": "int", "low": low, "high": _last_integer(self.low, self.high)}
        return {
            "type": "int",
            "low": low,
            "high": low + self.step * _steps(low, self.high, self.step),
            "step": self.step,
        }


@dataclass(frozen=True)
class IntLogUniform:
    """The integer part of a log-uniform draw on [low, high]."""

    low: float
    high: float

    def sample(self, generator: np.random.Generator) -> int:
        """Draw one value."""
        return int(10 ** generator.uniform(math.log10(self.low), math.log10(self.high)))

    def spec(self) -> dict[str, Any]:
        """The range as plain data."""
        return {"type": "int", "low": int(self.low), "high": _last_integer(self.low, self.high), "log": True}


@dataclass(frozen=True)
class Choice:
    """One of a few values with equal chances."""

    values: tuple[Any, ...]

    def sample(self, generator: np.random.Generator) -> Any:
        """Draw one value."""
        return self.values[int(generator.integers(len(self.values)))]

    def spec(self) -> dict[str, Any]:
        """The values as plain data."""
        return {"choices": list(self.values)}


def _steps(low: float, high: float, step: float) -> int:
    """How many whole steps fit between low and high."""
    return math.floor((high - low) / step + 1e-9)


def _last_integer(low: float, high: float) -> int:
    """The largest integer part of the numbers from `low` to `high`, without `high` itself where the two differ."""
    return max(int(low), math.ceil(high) - 1) if high > 0 else int(high)


def annotations_of(owner: type[Any]) -> dict[str, Any]:
    """Annotations of a dataclass's fields, or of what another class's constructor takes, in alphabetical order.

    What has no annotation has Any.

    Raises:
        NameError: an annotation names something that does not exist where the class is defined.
    """
    if dataclasses.is_dataclass(owner):
        names = [field.name for field in dataclasses.fields(owner)]
        hints = typing.get_type_hints(owner, include_extras=True)
    else:
        names = list(inspect.signature(owner).parameters)
        hints = typing.get_type_hints(owner.__init__, include_extras=True)
    return {name: hints.get(name, Any) for name in sorted(names)}


def search_space(hyperparameters: type[Any]) -> dict[str, Law]:
    """Collect the random law of every field that has one, by field name in alphabetical order.

    Of a class that is no dataclass it is the laws of what its constructor takes.
    """
    space: dict[str, Law] = {}
    for name, hint in annotations_of(hyperparameters).items():
        for note in getattr(hint, "__metadata__", ()):
            if isinstance(note, Law):
                space[name] = note
    return space


def conditions(hyperparameters: type[Any]) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Collect, by field name, the other field and its values under which a field matters; others have no entry.

    Raises:
        TypeError: for a condition on a field that does not exist, for two on one field, and for a circle of them.
    """
    hints, found = annotations_of(hyperparameters), dict[str, tuple[str, tuple[Any, ...]]]()
    for name, hint in hints.items():
        notes = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, When)]
        if len(notes) > 1:
            raise TypeError(f"{hyperparameters.__qualname__}.{name} has {len(notes)} conditions; give it one")
        for note in notes:
            if note.field not in hints or note.field == name:
                raise TypeError(
                    f"{hyperparameters.__qualname__}.{name} depends on {note.field!r}, which is no other field"
                )
            found[name] = note.field, note.values
    for name in found:
        chain = [name]
        while chain[-1] in found:
            chain.append(found[chain[-1]][0])
            if chain[-1] in chain[:-1]:
                raise TypeError(f"{hyperparameters.__qualname__}: the conditions {' -> '.join(chain)} go in a circle")
    return found


def typed(name: str, value: Any, kind: Any, owner: str) -> Any:
    """Return a hyperparameter's value as the type it is annotated with: an int is turned into a float where only that fits.

    Args:
        name: of the hyperparameter.
        value: its value.
        kind: a type, or Any, Literal[...], a union or Annotated[...] of these.
        owner: what has the hyperparameter, for the message.

    Raises:
        InputError: the value has another type.
    """
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if any(_fits(value, option) for option in options):
        return value
    if float in options and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = " or ".join(_words(option) for option in options)
    raise InputError(f"hyperparameters: {name} of {owner} is {value!r}; give {wanted}")


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in typing.get_args(kind))
    kind = typing.get_origin(kind) or kind
    if kind is Any or not isinstance(kind, type):  # a type variable and the like
        return True
    return isinstance(value, kind) and (not isinstance(value, bool) or kind in (bool, object))


def _words(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    return "None" if kind is type(None) else f"a {kind.__name__ if isinstance(kind, type) else kind}"


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
        checked[name] = typed(name, value, hints[name], owner)
    try:
        return hyperparameters(**checked)
    except InputError:
        raise
    except (TypeError, ValueError) as error:  # of a user's own class
        raise InputError(f"hyperparameters: {owner}: {' '.join(str(error).split())}") from error
