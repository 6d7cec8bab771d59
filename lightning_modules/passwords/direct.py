"""Direct schemas: every spoken digit is one linear equation in the key."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.passwords.challenges import Challenge, IntArray
from lightning_modules.passwords.schemas import Algebra, KeyMap, Schema, Step, Value

_LETTERS = KeyMap("f", 26)


class DirectSchema(Schema):
    """A schema whose pairs are linear equations modulo 10 in `unknowns` numbers."""

    unknowns = 26

    @abstractmethod
    def equations(self, challenge: Challenge, response: str) -> tuple[IntArray, IntArray]:
        """What a pair says: coefficients [k, unknowns] and right-hand sides [k], modulo 10."""

    def given(self) -> tuple[IntArray, IntArray]:
        """Equations that hold for every key."""
        return np.zeros((0, self.unknowns), np.int64), np.zeros(0, np.int64)


class WordSum(DirectSchema):
    """One digit: the sum of the letters' digits modulo 10."""

    name = "word-sum"
    maps = (_LETTERS,)

    def trace(self, algebra: Algebra, key: Mapping[str, Any], challenge: Sequence[Value]) -> Iterator[Step]:
        """Speak the sum."""
        yield algebra.add([algebra.look(key["f"], letter) for letter in challenge], 10), True

    def human_cost(self, challenge: Challenge) -> int:
        """A look-up a letter, and the additions."""
        return 2 * len(self.codes(challenge)) - 1

    def response_digits(self, challenge: Challenge) -> float:
        """One."""
        return 1.0

    def equations(self, challenge: Challenge, response: str) -> tuple[IntArray, IntArray]:
        """One equation: how often each letter stands there."""
        counts = np.bincount(self.codes(challenge), minlength=26)
        return counts[None], np.array([int(response)])


class RunningSum(DirectSchema):
    """A digit a letter: the sum so far, s_i = s_(i-1) + f(c_i) modulo 10. Every pair gives away its letters."""

    name = "running-sum"
    maps = (_LETTERS,)

    def trace(self, algebra: Algebra, key: Mapping[str, Any], challenge: Sequence[Value]) -> Iterator[Step]:
        """Speak every sum."""
        total: Value = 0
        for letter in challenge:
            total = algebra.add([total, algebra.look(key["f"], letter)], 10)
            yield total, True

    def human_cost(self, challenge: Challenge) -> int:
        """A look-up a letter, and the additions."""
        return 2 * len(self.codes(challenge)) - 1

    def equations(self, challenge: Challenge, response: str) -> tuple[IntArray, IntArray]:
        """An equation a letter: f(c_i) = r_i - r_(i-1)."""
        codes, spoken = np.array(self.codes(challenge)), _digits(response)
        return np.eye(26, dtype=np.int64)[codes], np.diff(spoken, prepend=0) % 10


class MentalHash(DirectSchema):
    """Blum's mental hash: r_1 = g(f(c_1) + f(c_n)), then r_i = g(r_(i-1) + f(c_i)), g a permutation of the digits.

    With h the inverse of g, f(c_1) + f(c_n) = h(r_1) and f(c_i) = h(r_i) - r_(i-1): the permutation hides nothing. Unknowns are
    the letters' 26 values, then the ten of h.
    """

    name = "mental-hash"
    maps = (_LETTERS, KeyMap("g", 10, permutation=True))
    unknowns = 36

    def trace(self, algebra: Algebra, key: Mapping[str, Any], challenge: Sequence[Value]) -> Iterator[Step]:
        """Speak every digit of the chain."""
        before = algebra.look(key["f"], challenge[-1])
        for letter in challenge:
            before = algebra.look(key["g"], algebra.add([before, algebra.look(key["f"], letter)], 10))
            yield before, True

    def human_cost(self, challenge: Challenge) -> int:
        """A look-up, an addition and a step of g a letter, and one more look-up for the last letter."""
        return 3 * len(self.codes(challenge)) + 1

    def equations(self, challenge: Challenge, response: str) -> tuple[IntArray, IntArray]:
        """An equation a letter."""
        codes, spoken = np.array(self.codes(challenge)), _digits(response)
        units = np.eye(36, dtype=np.int64)
        rows = units[codes] - units[26 + spoken]
        rows[0] += units[codes[-1]]
        return rows % 10, -np.concatenate(([0], spoken[:-1])) % 10

    def given(self) -> tuple[IntArray, IntArray]:
        """The values of a permutation sum to 45: with nine known the tenth follows."""
        return np.repeat([0, 1], [26, 10])[None], np.array([5])


def _digits(response: str) -> IntArray:
    return np.frombuffer(response.encode(), np.uint8).astype(np.int64) - 48


def permutation(text: str, cycle: bool = False) -> IntArray:
    """Read a permutation of the digits.

    Args:
        text: ten digits: g(0), g(1), ... g(9), or a cycle.
        cycle: whether g goes to the next digit of the text: with "0298736514" g(0) = 2, g(2) = 9, ... g(4) = 0.

    Raises:
        InputError: not each of the ten digits stands there once.
    """
    if sorted(text) != list("0123456789"):
        raise InputError(f"g: {text!r} is no permutation; write each of the ten digits once")
    values = np.array([int(symbol) for symbol in text])
    if not cycle:
        return values
    g = np.empty(10, np.int64)
    g[values] = np.roll(values, -1)
    return g
