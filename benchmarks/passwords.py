"""Password schemas: the mental hash's success curve, all test challenges in one reduction, against a reduction a challenge in plain Python."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python benchmarks/passwords.py` has only this folder

from benchmarks.harness import alternate, quick_asked, ratio, show
from lightning_modules.passwords.challenges import Challenge, RandomSource
from lightning_modules.passwords.direct import MentalHash
from lightning_modules.passwords.linear import LinearAttack
from lightning_modules.passwords.pairs import Attack
from lightning_modules.passwords.quality import success_curve
from lightning_modules.passwords.schemas import Schema

KEYS, PAIRS, TESTS = 30, 20, 40


class PlainForm:
    """Equations modulo a prime in lists, by their first unknown, fully reduced."""

    def __init__(self, prime: int) -> None:
        self.prime = prime
        self.rows: dict[int, list[int]] = {}

    def reduce(self, row: list[int]) -> list[int]:
        """Take the equations off a row."""
        for pivot, other in self.rows.items():
            if factor := row[pivot]:
                row = [(x - factor * y) % self.prime for x, y in zip(row, other, strict=True)]
        return row

    def insert(self, row: list[int]) -> None:
        """Add an equation."""
        row = self.reduce([x % self.prime for x in row])
        pivot = next((i for i, x in enumerate(row[:-1]) if x), None)
        if pivot is None:
            return
        inverse = pow(row[pivot], -1, self.prime)
        row = [x * inverse % self.prime for x in row]
        for other, old in self.rows.items():
            if factor := old[pivot]:
                self.rows[other] = [(x - factor * y) % self.prime for x, y in zip(old, row, strict=True)]
        self.rows[pivot] = row


class PlainAttack:
    """The same attack: a digit d comes next if f(c) + r_before - h(d) is determined and 0, or if it is the only one left."""

    def __init__(self, schema: Schema) -> None:
        self.forms = [PlainForm(2), PlainForm(5)]
        self._insert([0] * 26 + [1] * 10 + [5])

    def _insert(self, row: list[int]) -> None:
        for form in self.forms:
            form.insert(row)

    def observe(self, challenge: Challenge, response: str) -> None:
        """Take in a leaked pair."""
        assert isinstance(challenge, str)
        before = 0
        for place, (letter, digit) in enumerate(zip(challenge, map(int, response), strict=True)):
            row = self._row(letter, challenge[-1] if place == 0 else None, digit)
            row[-1] = -before
            self._insert(row)
            before = digit

    @staticmethod
    def _row(letter: str, second: str | None, digit: int) -> list[int]:
        row = [0] * 37
        row[ord(letter) - 97] += 1
        if second is not None:
            row[ord(second) - 97] += 1
        row[26 + digit] -= 1
        return row

    def predict_many(self, challenges: Sequence[Challenge]) -> list[str | None]:
        """Answer challenges one by one."""
        return [self._predict(str(challenge)) for challenge in challenges]

    def _predict(self, challenge: str) -> str | None:
        spoken, before = "", 0
        for place, letter in enumerate(challenge):
            possible, certain = [], []
            for digit in range(10):
                row = self._row(letter, challenge[-1] if place == 0 else None, digit)
                row[-1] = -before
                zero = [self._is_zero(form, row) for form in self.forms]
                if False not in zero:
                    possible.append(digit)
                if zero == [True, True]:
                    certain.append(digit)
            found = certain or (possible if len(possible) == 1 else [])
            if not found:
                return None
            before = found[0]
            spoken += str(before)
        return spoken

    @staticmethod
    def _is_zero(form: PlainForm, row: list[int]) -> bool | None:
        """Whether the equation holds; None where that is not determined."""
        left = form.reduce([x % form.prime for x in row])
        return None if any(left[:-1]) else left[-1] == 0


def main() -> None:
    """Measure."""
    quick = quick_asked(__doc__)
    keys, rounds = (3, 1) if quick else (KEYS, 3)
    curves: dict[str, np.ndarray] = {}

    def measure(name: str, attack: Callable[[Schema], Attack]) -> Callable[[], float]:
        def clocked() -> float:
            began = time.perf_counter()
            curves[name] = success_curve(MentalHash(), attack, RandomSource(8, TESTS), keys, PAIRS).success
            return keys * PAIRS * TESTS / (time.perf_counter() - began)

        return clocked

    taken = alternate({"ours": measure("ours", LinearAttack), "plain": measure("plain", PlainAttack)}, rounds)
    assert (curves["ours"] == curves["plain"]).all(), "both attacks must know the same"
    figures = [ratio("mental hash: answered challenges a second", taken["ours"], taken["plain"], 10)]
    show(
        "Password schemas, one thread",
        figures,
        [
            f"the curve of {keys} keys, {PAIRS} leaked pairs of 8 letters, {TESTS} fresh challenges after each",
            "plain: lists and loops, a reduction for every digit of every challenge; both answer exactly alike",
        ],
    )


if __name__ == "__main__":
    main()
