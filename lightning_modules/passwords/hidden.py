"""Schemas that hide something: which letter spoke, or the digits of a first pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_modules.errors import InputError
from lightning_modules.passwords.challenges import Challenge
from lightning_modules.passwords.direct import DirectSchema, RunningSum, WordSum
from lightning_modules.passwords.schemas import Algebra, Schema, Step, Value

_SPOKEN_BELOW = 5


class SkipSum(Schema):
    """A running sum whose digits are spoken only below 5: the response's length varies, and nobody sees which letter spoke.

    Our choice; it stands for schemas of the skip-to-my-Lou kind, whose exact rule we could not confirm.
    """

    name = "skip-sum"
    maps = RunningSum.maps

    def trace(self, algebra: Algebra, key: Mapping[str, Any], challenge: Sequence[Value]) -> Iterator[Step]:
        """Compute every sum, speak the small ones."""
        for total, _ in RunningSum().trace(algebra, key, challenge):
            yield total, algebra.apply(lambda digit: digit < _SPOKEN_BELOW, total)

    def human_cost(self, challenge: Challenge) -> int:
        """Those of the running sum and a comparison a letter."""
        return 3 * len(self.codes(challenge)) - 1

    def response_digits(self, challenge: Challenge) -> float:
        """Half a digit a letter."""
        return len(self.codes(challenge)) / 2

    def multiplicity(self, challenge: Challenge, response: str) -> float:
        """Ways to say which letters spoke."""
        return float(math.comb(len(self.codes(challenge)), len(response)))


class TwoPass(Schema):
    """A one-pass schema, run twice: the second time every letter moves on by a digit of the first pass, which is not spoken.

    The name is the paper's, the rule our choice: letter c_i becomes the letter d places on in the alphabet (z goes on to a), d
    being the first pass's digit at that place, from the beginning again where it has fewer digits than there are letters.

    Args:
        base: a schema that speaks all its digits: word-sum, running-sum or mental-hash.

    Raises:
        InputError: for another base.
    """

    def __init__(self, base: Schema) -> None:
        if not isinstance(base, DirectSchema):
            raise InputError(f"base: {base.name} is not direct; take word-sum, running-sum or mental-hash")
        self.base, self.name, self.maps = base, f"two-pass-{base.name}", base.maps

    def trace(self, algebra: Algebra, key: Mapping[str, Any], challenge: Sequence[Value]) -> Iterator[Step]:
        """Run, move the letters, run again."""
        first = [digit for digit, _ in self.base.trace(algebra, key, challenge)]
        moved = [algebra.add([c, first[i % len(first)]], 26) for i, c in enumerate(challenge)]
        return self.base.trace(algebra, key, moved)

    def human_cost(self, challenge: Challenge) -> int:
        """Both passes, and a move in the alphabet a letter."""
        return 2 * self.base.human_cost(challenge) + len(self.codes(challenge))

    def response_digits(self, challenge: Challenge) -> float:
        """Those of the base."""
        return self.base.response_digits(challenge)

    def multiplicity(self, challenge: Challenge, response: str) -> float:
        """The hidden digits of the first pass: ten alternatives each."""
        return 10.0 ** (1 if isinstance(self.base, WordSum) else len(self.codes(challenge)))


def expansion(schema: Schema, challenge: Challenge) -> float:
    """The expansion factor: digits of the response a symbol of the challenge."""
    return schema.response_digits(challenge) / len(schema.codes(challenge))
