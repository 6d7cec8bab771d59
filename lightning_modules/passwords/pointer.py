"""PointerSum: some digits of the key say which other one counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.passwords.challenges import Challenge
from lightning_modules.passwords.schemas import Algebra, KeyMap, Schema, Step, Value


class PointerSum(Schema):
    """One digit, j = sum of k1 digits of the key modulo 10, r = sigma(x_j) + sum of k2 further ones modulo 10.

    A challenge is an ordered list of 10 + k1 + k2 distinct numbers below n: x_0 to x_9 can be pointed at, the next k1 point, the
    last k2 are added. Blocki, Blum, Datta, Vempala, "Towards Human Computable Passwords" (2016); the formula is from memory.

    Args:
        k1: digits that point.
        k2: digits that are added.
        n: digits of the key.

    Raises:
        InputError: k1 or k2 is below 1, or n too small for a challenge.
    """

    def __init__(self, k1: int = 1, k2: int = 1, n: int = 26) -> None:
        if k1 < 1 or k2 < 1:
            raise InputError(f"k1, k2: {k1} and {k2}; give 1 or more of each")
        self.size = 10 + k1 + k2
        if n < self.size:
            raise InputError(
                f"n: {n} secret digits are fewer than the {self.size} of a challenge; give {self.size} or more"
            )
        self.k1, self.k2, self.n = k1, k2, n
        self.name = f"pointer-sum-{k1}-{k2}-{n}"
        self.maps = (KeyMap("sigma", n),)

    def trace(self, algebra: Algebra, key: Mapping[str, Any], challenge: Sequence[Value]) -> Iterator[Step]:
        """Point, look, add."""
        digits = [algebra.look(key["sigma"], x) for x in challenge]
        pointer = algebra.add(digits[10 : 10 + self.k1], 10)
        yield algebra.add([algebra.look(digits[:10], pointer), *digits[10 + self.k1 :]], 10), True

    def codes(self, challenge: Challenge) -> tuple[int, ...]:
        """Check a challenge, numbers or a text of them with spaces between.

        Raises:
            InputError: numbers are repeated, out of range, too few or too many.
        """
        if isinstance(challenge, str):
            words = challenge.split()
            if not words or not all(word.isdecimal() for word in words):
                raise InputError(
                    f"challenge: {challenge!r} is no list of numbers; give {self.size} with spaces between"
                )
            challenge = tuple(map(int, words))
        if len(challenge) != self.size:
            raise InputError(f"challenge: has {len(challenge)} numbers; {self.name} takes {self.size}")
        if len(set(challenge)) < self.size:
            raise InputError(
                f"challenge: {next(x for x in challenge if challenge.count(x) > 1)} is repeated; give distinct numbers"
            )
        for x in challenge:
            if not 0 <= x < self.n:
                raise InputError(f"challenge: {x} is out of range; give numbers from 0 to {self.n - 1}")
        return tuple(map(int, challenge))

    def random_challenges(self, rng: np.random.Generator, count: int, length: int = 0) -> list[Challenge]:
        """Draw ordered lists of distinct numbers; `length` does not matter."""
        drawn = rng.permuted(np.tile(np.arange(self.n), (count, 1)), axis=1)[:, : self.size]
        return [tuple(row) for row in drawn.tolist()]

    def human_cost(self, challenge: Challenge) -> int:
        """2 k1 + 2 k2 + 1 (confirmed)."""
        return 2 * self.k1 + 2 * self.k2 + 1

    def response_digits(self, challenge: Challenge) -> float:
        """One."""
        return 1.0

    def multiplicity(self, challenge: Challenge, response: str) -> float:
        """Ten, one a place that may be pointed at."""
        return 10.0

    @property
    def exponent(self) -> float:
        """s = min(k1 + 1, (k2 + 1) / 2): a statistical adversary needs about n^s pairs (Blocki et al. 2016, confirmed)."""
        return min(self.k1 + 1, (self.k2 + 1) / 2)
