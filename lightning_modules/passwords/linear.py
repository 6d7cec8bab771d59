"""The linear attack: pairs of direct schemas are equations modulo 10, solved modulo 2 and modulo 5."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.passwords.challenges import Challenge, IntArray
from lightning_modules.passwords.direct import DirectSchema, MentalHash, WordSum
from lightning_modules.passwords.echelon import PRIMES, EchelonForm, join
from lightning_modules.passwords.pairs import InconsistentPairs
from lightning_modules.passwords.schemas import Schema, check_response


class LinearAttack:
    """Solves the equations of `WordSum`, `RunningSum` and `MentalHash` as they come; it never answers wrongly.

    A response is determined when every digit's coefficients lie in the row span modulo BOTH primes. Of `MentalHash` a digit is
    also determined when nine others are excluded. For the two sums this is exact: what is not determined could be otherwise. For the mental hash
    `AllInformationAdversary` may know a little more.

    Args:
        schema: a direct schema.
        guess: whether to answer with a key's response where nothing is determined; for the two sums only.

    Raises:
        InputError: the schema is not direct.
    """

    def __init__(self, schema: Schema, guess: bool = False) -> None:
        if not isinstance(schema, DirectSchema):
            raise InputError(f"schema: {schema.name} has no linear equations; use ConstraintAttack")
        if guess and isinstance(schema, MentalHash):
            raise InputError("guess: keys of mental-hash are no linear space; use ConstraintAttack to guess")
        self.schema, self.guess, self.pairs = schema, guess, 0
        self.forms = tuple(EchelonForm(schema.unknowns, prime) for prime in PRIMES)
        self._insert(*schema.given())

    def observe(self, challenge: Challenge, response: str) -> None:
        """Take in a leaked pair.

        Raises:
            InconsistentPairs: no key gives this response and the ones before; the attack stays as it was.
            InputError: the challenge or the response is none.
        """
        check_response(response, challenge)
        if len(response) != self.schema.response_digits(challenge):
            raise InconsistentPairs(self.pairs + 1, challenge, f"has a response of {len(response)} digits")
        before = [(form.rows, form.rank) for form in self.forms]
        before = [(rows.copy(), rank) for rows, rank in before]
        if not self._insert(*self.schema.equations(challenge, response)):
            for form, (rows, rank) in zip(self.forms, before, strict=True):
                form.rows, form.rank = rows, rank
            raise InconsistentPairs(self.pairs + 1, challenge)
        self.pairs += 1

    def _insert(self, rows: IntArray, values: IntArray) -> bool:
        equations = np.column_stack([rows, values])
        return all(form.insert(equation) for form in self.forms for equation in equations)

    def rank(self) -> tuple[int, int]:
        """Rank modulo 2 and modulo 5.

        It need not become full: the letters of challenges of an even length always sum to an even number, so that the rank
        modulo 2 stays below 26; likewise modulo 5 for lengths divisible by 5.
        """
        return self.forms[0].rank, self.forms[1].rank

    def predict(self, challenge: Challenge) -> str | None:
        """Answer one challenge; None where the response is not determined."""
        return self.predict_many([challenge])[0]

    def predict_many(self, challenges: Sequence[Challenge]) -> list[str | None]:
        """Answer many challenges, one matrix reduction for each length; None where the response is not determined."""
        answers: list[str | None] = [None] * len(challenges)
        by_length: dict[int, list[int]] = {}
        coded = [self.schema.codes(challenge) for challenge in challenges]
        for number, codes in enumerate(coded):
            by_length.setdefault(len(codes), []).append(number)
        solve = self._hash if isinstance(self.schema, MentalHash) else self._sums
        for numbers in by_length.values():
            digits, sure = solve(np.array([coded[number] for number in numbers]))
            characters = (digits + 48).astype(np.uint8)
            for number, row, good in zip(numbers, characters, sure, strict=True):
                answers[number] = bytes(row).decode() if good else None
        return answers

    def _sums(self, codes_BL: IntArray) -> tuple[IntArray, IntArray]:
        """Digits [B, digits] of sums of letters, and which responses [B] are determined (or guessed)."""
        counts = np.eye(26, dtype=np.int64)[codes_BL].cumsum(1)
        if isinstance(self.schema, WordSum):
            counts = counts[:, -1:]
        shape = counts.shape[:2]
        known, values = zip(*(form.known(counts.reshape(-1, 26)) for form in self.forms), strict=True)
        sure = (known[0] & known[1]).reshape(shape).all(1)
        # A constant is the form's value where all that is free is 0: a response of one key that is consistent.
        return join(*values).reshape(shape), sure | self.guess

    def _hash(self, codes_BL: IntArray) -> tuple[IntArray, IntArray]:
        """Digits [B, L] of the mental hash, and which responses [B] are determined."""
        count, length = codes_BL.shape
        units = np.eye(36, dtype=np.int64)
        letters = (units[:26, None] - units[None, 26:]).reshape(-1, 36)
        ends = units[codes_BL[:, 0]] + units[codes_BL[:, -1]]
        firsts = (ends[:, None] - units[None, 26:]).reshape(-1, 36)
        # Digit d comes next exactly if f(c) + r_before - h(d) = 0: [26, 10] tables of f - h, and [B, 10] for the first letter.
        known, values = zip(*(form.known(np.concatenate([letters, firsts])) for form in self.forms), strict=True)
        known_l, value_l = (np.stack([part[:260].reshape(26, 10) for part in parts]) for parts in (known, values))
        known_f, value_f = (np.stack([part[260:].reshape(count, 10) for part in parts]) for parts in (known, values))
        primes = np.array(PRIMES)[:, None, None]
        digits, sure = np.zeros((count, length), np.int64), np.ones(count, bool)
        for place in range(length):
            if place == 0:
                known_here, value_here = known_f, value_f
            else:
                known_here = known_l[:, codes_BL[:, place]]
                value_here = value_l[:, codes_BL[:, place]] + digits[:, place - 1, None]
            zero = value_here % primes == 0
            possible = ~(known_here & ~zero).any(0)
            certain = (known_here & zero).all(0)
            one_left = possible & (possible.sum(1, keepdims=True) == 1)
            found = certain | one_left
            digits[:, place] = found.argmax(1)
            sure &= found.any(1)
        return digits, sure
