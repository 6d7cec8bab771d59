"""The adversary with unlimited computing power, for the mental hash: every permutation that the pairs leave is gone through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.passwords.challenges import Challenge, IntArray
from lightning_modules.passwords.direct import MentalHash
from lightning_modules.passwords.echelon import PRIMES, join
from lightning_modules.passwords.linear import LinearAttack

_CHUNK = 20_000


class AllInformationAdversary:
    """Knows a response of the mental hash exactly when all consistent keys agree on it.

    The pairs are linear in f and h = g^-1. What they say about h alone is solved first: its permutations are enumerated
    depth-first, digit by digit, in chunks. With h given the rest is linear, so that a response is open where f is.

    Args:
        schema: the mental hash.
        limit: most permutations gone through for a question.

    Raises:
        InputError: for another schema, or a limit below 1.
    """

    def __init__(self, schema: MentalHash | None = None, limit: int = 4_000_000) -> None:
        schema = MentalHash() if schema is None else schema
        if not isinstance(schema, MentalHash):
            raise InputError(
                f"schema: {schema.name}; all keys are gone through for mental-hash only, use LinearAttack for sums"
            )
        if limit < 1:
            raise InputError(f"limit: {limit} is too small; give 1 or more")
        self._linear, self.limit = LinearAttack(schema), limit

    def observe(self, challenge: Challenge, response: str) -> None:
        """Take in a leaked pair; raises InconsistentPairs where the equations contradict each other."""
        self._linear.observe(challenge, response)

    def predict_many(self, challenges: Sequence[Challenge]) -> list[str | None]:
        """Answer challenges; None where two keys disagree.

        Raises:
            InputError: more than `limit` permutations are left and agree so far, so that nothing is decided.
        """
        return [self._predict(self._linear.schema.codes(challenge)) for challenge in challenges]

    def _predict(self, codes: tuple[int, ...]) -> str | None:
        units = np.eye(36, dtype=np.int64)
        sums = units[list(codes)]
        sums[0] += units[codes[-1]]
        reduced = [form.reduce(sums) for form in self._linear.forms]
        if any(left[:, :26].any() for left, _ in reduced):
            return None  # f is free there, whatever h is
        answer: IntArray | None = None
        seen = 0
        for h in self.permutations():
            seen += len(h)
            parts = [(constants + h @ left[:, 26:].T) % p for (left, constants), p in zip(reduced, PRIMES, strict=True)]
            digits = _chain(join(*parts), np.argsort(h, 1))
            answer = digits[0] if answer is None else answer
            if (digits != answer).any():
                return None
            if seen > self.limit:
                raise InputError(
                    f"limit: {self.limit} permutations agree and more are left; give a larger one, or more pairs"
                )
        assert answer is not None, "the true key is consistent"
        return "".join(map(str, answer))

    def permutations(self) -> Iterator[IntArray]:
        """The permutations h that are consistent with the pairs, in chunks [n, 10]."""
        bounds = [_closed_rows(form.rows, p) for form, p in zip(self._linear.forms, PRIMES, strict=True)]
        stack: list[IntArray] = [np.zeros((1, 0), np.int64)]
        while stack:
            partial = stack.pop()
            depth = partial.shape[1]
            if depth == 10:
                yield partial
                continue
            grown = np.concatenate([np.repeat(partial, 10, 0), np.tile(np.arange(10), len(partial))[:, None]], 1)
            keep = (grown[:, :-1] != grown[:, -1:]).all(1)
            for (rows, last), prime in zip(bounds, PRIMES, strict=True):
                for row in rows[last == depth]:
                    keep &= (grown @ row[: depth + 1] - row[-1]) % prime == 0
            grown = grown[keep]
            stack += [grown[start : start + _CHUNK] for start in range(0, len(grown), _CHUNK)]

    def count(self) -> int:
        """Number of permutations that are consistent."""
        return sum(len(h) for h in self.permutations())


def _closed_rows(rows: IntArray, prime: int) -> tuple[IntArray, IntArray]:
    """The equations on h alone [k, 10 + 1], turned so that each ends as early as it can, and the digit [k] it ends with."""
    kept = rows[~rows[:, :26].any(1) & rows[:, 26:36].any(1)][:, 26:].astype(np.int64)
    last = np.zeros(len(kept), np.int64)
    for number in range(len(kept)):
        # Of what is left, the row that reaches farthest gives its last digit to no other.
        ends = np.array([row[:10].nonzero()[0][-1] for row in kept[number:]])
        pick = number + int(ends.argmax())
        kept[[number, pick]] = kept[[pick, number]]
        last[number] = end = int(ends.max())
        kept[number] = kept[number] * pow(int(kept[number, end]), -1, prime) % prime
        kept[number + 1 :] = (kept[number + 1 :] - kept[number + 1 :, end, None] * kept[number]) % prime
    return kept, last


def _chain(sums: IntArray, g: IntArray) -> IntArray:
    """Responses [n, L] of the mental hash from sums [n, L] of letters and permutations g [n, 10]."""
    digits = np.zeros_like(sums)
    before = np.zeros(len(sums), np.int64)
    for place in range(sums.shape[1]):
        before = digits[:, place] = g[np.arange(len(g)), (before + sums[:, place]) % 10]
    return digits
