"""Challenge-response pairs: what leaked."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lightning_modules.errors import InputError
from lightning_modules.passwords.challenges import Challenge

Pair = tuple[Challenge, str]


class InconsistentPairs(InputError):
    """No key gives all the responses: a pair contradicts those before it, or cannot come from the schema at all.

    Args:
        number: of the first pair that does, from 1.
        challenge: of that pair; its response is not shown.
        why: a few words.
    """

    def __init__(self, number: int, challenge: Challenge, why: str = "contradicts the pairs before it") -> None:
        super().__init__(f"pairs: pair {number} (challenge {challenge!r}) {why}; check its response, or the schema")
        self.number, self.challenge, self.why = number, challenge, why

    def __reduce__(self) -> tuple[type[InconsistentPairs], tuple[int, Challenge, str]]:
        """Travel between processes."""
        return type(self), (self.number, self.challenge, self.why)


class Attack(Protocol):
    """What sees pairs and answers fresh challenges."""

    def observe(self, challenge: Challenge, response: str) -> None:
        """Take in a leaked pair."""

    def predict_many(self, challenges: Sequence[Challenge]) -> list[str | None]:
        """Answer challenges; None where nothing can be said."""


class MemorisingAttack:
    """The baseline that knows what leaked and nothing else."""

    def __init__(self) -> None:
        self._known: dict[Challenge, str] = {}

    def observe(self, challenge: Challenge, response: str) -> None:
        """Keep a pair."""
        if self._known.setdefault(challenge, response) != response:
            raise InconsistentPairs(len(self._known) + 1, challenge)

    def predict_many(self, challenges: Sequence[Challenge]) -> list[str | None]:
        """Look up what was seen."""
        return [self._known.get(challenge) for challenge in challenges]


def read_pairs(path: str | Path) -> list[Pair]:
    """Read pairs from a CSV file whose first line is challenge,response.

    Raises:
        InputError: the file cannot be read, lacks a column or a row, or a response is no text of digits.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"pairs: {path} cannot be read ({getattr(error, 'strerror', None) or 'no text'}); give a CSV file"
        ) from None
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    if not {"challenge", "response"} <= set(rows.fieldnames or ()):
        raise InputError(f"pairs: {path} lacks a column; its first line must be challenge,response")
    pairs: list[Pair] = []
    for row in rows:
        challenge, response = (row["challenge"] or "").strip(), (row["response"] or "").strip()
        if not challenge or any(symbol not in "0123456789" for symbol in response):
            raise InputError(
                f"pairs: line {rows.line_num} of {path} is no challenge and digits; write e.g. github,4071"
            )
        pairs.append((challenge, response))
    if not pairs:
        raise InputError(f"pairs: {path} has none; give at least one line below the first")
    return pairs
