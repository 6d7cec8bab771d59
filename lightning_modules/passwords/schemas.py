"""What a password schema is: a public procedure, written once, that runs on numbers, on arrays of them, and in a solver."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.passwords.challenges import Challenge, IntArray, letter_codes, random_letters

Value = Any
"""A number, an array of numbers (one a challenge), or a solver's unknown: what an algebra computes with."""
Key = Mapping[str, IntArray]
"""The secret: by map its values, e.g. {"f": [26] digits of the letters, "g": [10] a permutation of the digits}."""
Step = tuple[Value, Value]
"""A digit, and whether it is spoken (True or False, or an unknown 0 or 1)."""


class Algebra(Protocol):
    """How a schema computes: with numbers or with unknowns of a solver."""

    def add(self, terms: Sequence[Value], modulus: int) -> Value:
        """The sum of terms modulo `modulus`, from 0 on."""

    def look(self, table: Any, index: Value) -> Value:
        """The entry of a table (of numbers or unknowns) at an index."""

    def apply(self, function: Callable[..., Any], *values: Value) -> Value:
        """A function of values; it is given arrays of equal shapes and returns one of that shape."""


class Numbers:
    """Plain numbers, or arrays of them with one entry a challenge."""

    def add(self, terms: Sequence[Value], modulus: int) -> Value:
        """The sum of terms modulo `modulus`."""
        return sum(terms) % modulus

    def look(self, table: Any, index: Value) -> Value:
        """The entries of a table; where it holds arrays, entry by entry."""
        if isinstance(table, np.ndarray) and table.ndim == 1:
            return table[index]
        stacked = np.stack(np.broadcast_arrays(*table))
        if stacked.ndim == 1:
            return stacked[index]
        return np.take_along_axis(stacked, np.broadcast_to(index, stacked.shape[1:])[None], 0)[0]

    def apply(self, function: Callable[..., Any], *values: Value) -> Value:
        """The function's values."""
        return np.asarray(function(*np.broadcast_arrays(*values))).astype(np.int64)


@dataclass(frozen=True)
class KeyMap:
    """A secret map into the digits.

    Args:
        name: of the map.
        size: of its domain, 26 for letters, 10 for digits.
        permutation: whether it is a permutation of the digits.
    """

    name: str
    size: int
    permutation: bool = False

    @property
    def digits(self) -> float:
        """What it holds, in digits: log10 of how many there are."""
        return math.log10(math.factorial(10)) if self.permutation else float(self.size)


class Schema(ABC):
    """A public, deterministic procedure from challenge and key to a response of digits.

    A subclass has a name, the maps of its key, and `trace`.
    """

    name: str
    maps: tuple[KeyMap, ...]

    @abstractmethod
    def trace(self, algebra: Algebra, key: Mapping[str, Any], challenge: Sequence[Value]) -> Iterator[Step]:
        """Compute the digits one after the other.

        Args:
            algebra: what to add and look up with.
            key: by map its values.
            challenge: its symbols as numbers.
        """

    @abstractmethod
    def human_cost(self, challenge: Challenge) -> int:
        """Steps of a person: look-ups, additions of two digits, and moves of a finger or an eye to a symbol.

        Counted as Blocki, Blum, Datta and Vempala (2016) count `PointerSum`; for other schemas the count is ours.
        """

    def multiplicity(self, challenge: Challenge, response: str) -> float:
        """Number of elementary alternatives that a pair leaves; NaN where it is not known, 1 where it is an equation."""
        return 1.0

    def response_digits(self, challenge: Challenge) -> float:
        """Digits of a response, expected over keys."""
        return float(len(self.codes(challenge)))

    def codes(self, challenge: Challenge) -> tuple[int, ...]:
        """Check a challenge and number its symbols.

        Raises:
            InputError: for an empty challenge or symbols that are none.
        """
        return letter_codes(challenge)

    def random_challenges(self, rng: np.random.Generator, count: int, length: int) -> list[Challenge]:
        """Draw challenges of so many uniform letters."""
        return list(random_letters(rng, count, length))

    @property
    def key_digits(self) -> float:
        """Content of the key in digits: log10 of the number of keys."""
        return sum(part.digits for part in self.maps)

    def keygen(self, rng: np.random.Generator) -> dict[str, IntArray]:
        """Draw a uniform key."""
        return {m.name: rng.permutation(10) if m.permutation else rng.integers(0, 10, m.size) for m in self.maps}

    def check_key(self, key: Mapping[str, Any]) -> dict[str, IntArray]:
        """Return a key as arrays.

        Raises:
            InputError: a map is missing or not total, holds something else than digits, or is no permutation.
        """
        checked = {}
        for part in self.maps:
            if part.name not in key:
                raise InputError(f"key: the map {part.name!r} is missing; {self.name} has {self._map_names()}")
            values = np.asarray(key[part.name])
            if values.shape != (part.size,):
                shown = "x".join(map(str, values.shape)) or "no"
                raise InputError(f"key: {part.name} has {shown} values; it must be total, give {part.size}")
            if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 9:
                raise InputError(f"key: {part.name} has a value that is no digit; give whole numbers from 0 to 9")
            if part.permutation and len(np.unique(values)) < 10:
                raise InputError(f"key: {part.name} is no permutation; give each of the ten digits once")
            checked[part.name] = values.astype(np.int64)
        if extra := sorted(set(key) - set(checked)):
            raise InputError(f"key: {self.name} has no map {extra[0]!r}; it has {self._map_names()}")
        return checked

    def _map_names(self) -> str:
        return ", ".join(part.name for part in self.maps)

    def respond(self, key: Mapping[str, Any], challenges: Sequence[Challenge]) -> list[str]:
        """Compute the responses to many challenges at once, those of a length together.

        Raises:
            InputError: for a wrong key or challenge.
        """
        key = self.check_key(key)
        by_length: dict[int, list[int]] = {}
        coded = [self.codes(challenge) for challenge in challenges]
        for number, codes in enumerate(coded):
            by_length.setdefault(len(codes), []).append(number)
        responses = [""] * len(coded)
        for numbers in by_length.values():
            symbols = np.array([coded[number] for number in numbers], np.int64).T
            for number, response in zip(numbers, self._spell(key, symbols), strict=True):
                responses[number] = response
        return responses

    def _spell(self, key: dict[str, IntArray], symbols_LB: IntArray) -> list[str]:
        """Responses to challenges of one length, symbols [length, challenges]."""
        steps = list(self.trace(Numbers(), key, list(symbols_LB)))
        count = symbols_LB.shape[1]
        if not steps:
            return [""] * count
        digits, spoken = (
            np.stack([np.broadcast_to(part, count) for part in parts], 1) for parts in zip(*steps, strict=True)
        )
        if digits.min() < 0 or digits.max() > 9:
            raise InputError(f"schema: {self.name} speaks something that is no digit; take it modulo 10")
        characters = (digits + 48).astype(np.uint8)
        said = spoken.astype(bool)
        if said.all():
            return [bytes(row).decode() for row in characters]
        return [bytes(row[which]).decode() for row, which in zip(characters, said, strict=True)]


def check_deterministic(schema: Schema, seed: int = 0, challenges: int = 32, length: int = 8) -> None:
    """Evaluate a schema twice on random challenges.

    Raises:
        InputError: the responses differ, so that no attack on it would mean anything.
    """
    key = schema.keygen(np.random.default_rng([seed, 0]))
    asked = schema.random_challenges(np.random.default_rng([seed, 1]), challenges, length)
    first, second = schema.respond(key, asked), schema.respond(key, asked)
    for challenge, one, other in zip(asked, first, second, strict=True):
        if one != other:
            raise InputError(
                f"schema: {schema.name} answers {challenge!r} with {one} and then with {other}; it must be deterministic"
            )


def check_response(response: str, challenge: Challenge) -> None:
    """Check that a response is a text of digits, perhaps an empty one.

    Raises:
        InputError: it is not.
    """
    if not isinstance(response, str) or any(symbol not in "0123456789" for symbol in response):
        raise InputError(f"response: that to {challenge!r} is no text of digits 0-9; give the digits that were spoken")
