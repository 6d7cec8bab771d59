"""Quality of a schema: how often a fresh response is known after m leaked pairs, and what to hold that against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.passwords.challenges import Challenge, Draws, IntArray
from lightning_modules.passwords.pairs import Attack
from lightning_modules.passwords.schemas import Schema

if TYPE_CHECKING:
    import pyarrow as pa

MakeAttack = Callable[[Schema], Attack]


class Source(Protocol):
    """Where leaked and asked challenges come from: `RandomSource` or `SiteSource`."""

    def draw(
        self, schema: Draws, leaks: np.random.Generator, asked: np.random.Generator, pairs: int
    ) -> tuple[list[Challenge], list[Challenge]]:
        """Return leaked challenges in order, and those asked for (each only while it has not leaked)."""


@dataclass(frozen=True)
class KeyCurve:
    """How an attack does against one key.

    Args:
        pairs: numbers of leaked pairs [M].
        asked: whether a challenge is asked for at that point [M, T]: it is not when it has leaked.
        right: whether the attack's whole answer is right [M, T].
        wrong: whether it gives an answer that is wrong [M, T].
        unsolved: whether its solver reached its limit [M]; it then answers nothing, which does not mean secure.
        leaked: the leaked challenges in order.
        tests: the challenges asked for, T of them.
    """

    pairs: IntArray
    asked: IntArray
    right: IntArray
    wrong: IntArray
    unsolved: IntArray
    leaked: list[Challenge]
    tests: list[Challenge]

    @property
    def success(self) -> IntArray:
        """Share [M] of what is asked for that is answered rightly, the whole response."""
        share: IntArray = (self.right & self.asked).sum(1) / self.asked.sum(1)
        return share

    @property
    def errors(self) -> IntArray:
        """Share [M] of what is asked for that is answered wrongly."""
        share: IntArray = (self.wrong & self.asked).sum(1) / self.asked.sum(1)
        return share


@dataclass(frozen=True)
class Curve:
    """Success against the number of leaked pairs, one row a key.

    Args:
        pairs: numbers of leaked pairs [M].
        success: share of whole responses that are right [K, M].
        wrong: share that is answered wrongly [K, M].
        unsolved: whether the solver reached its limit [K, M].
    """

    pairs: IntArray
    success: IntArray
    wrong: IntArray
    unsolved: IntArray

    @property
    def mean(self) -> IntArray:
        """A(m) [M], over keys."""
        mean: IntArray = self.success.mean(0)
        return mean

    def table(self) -> pa.Table:
        """The curve as an Arrow table: key, pairs, success, wrong, unsolved."""
        import pyarrow as pa

        keys, points = self.success.shape
        columns = {"key": np.repeat(np.arange(keys), points), "pairs": np.tile(self.pairs, keys)}
        columns |= {name: getattr(self, name).ravel() for name in ("success", "wrong", "unsolved")}
        return pa.table(columns)


def key_curve(
    schema: Schema, attack: MakeAttack, source: Source, key: int, pairs: Sequence[int] | int, seed: int = 0
) -> KeyCurve:
    """Attack one key with more and more leaked pairs.

    Key, leaked challenges and asked challenges have random streams of their own, [seed, key, 0] to [seed, key, 2].

    Args:
        schema: the schema.
        attack: makes the attack on it.
        source: of challenges.
        key: number of the key, which fixes its random streams.
        pairs: numbers of pairs after which is asked, or their largest (then after each).
        seed: of all keys.

    Raises:
        InputError: for numbers of pairs below 1.
    """
    at = list(range(1, pairs + 1)) if isinstance(pairs, int) else sorted(set(pairs))
    if not at or at[0] < 1:
        raise InputError(f"pairs: {pairs} has none or a number below 1; give 1 or more")
    streams = [np.random.default_rng([seed, key, stream]) for stream in range(3)]
    secret = schema.keygen(streams[0])
    leaked, tests = source.draw(schema, streams[1], streams[2], at[-1])
    at = [m for m in at if m <= len(leaked)]
    truth, responses = schema.respond(secret, tests), schema.respond(secret, leaked)
    adversary, place = attack(schema), {challenge: number for number, challenge in enumerate(tests)}
    fresh = np.ones(len(tests), bool)
    found: dict[str, list[IntArray | bool]] = {name: [] for name in ("asked", "right", "wrong", "unsolved")}
    for number, (challenge, response) in enumerate(zip(leaked, responses, strict=True), 1):
        adversary.observe(challenge, response)
        if challenge in place:
            fresh[place[challenge]] = False
        if number in at:
            answers = adversary.predict_many(tests)
            right = np.array([answer == true for answer, true in zip(answers, truth, strict=True)])
            found["asked"].append(fresh.copy())
            found["right"].append(right)
            found["wrong"].append(np.array([answer is not None for answer in answers]) & ~right)
            found["unsolved"].append(getattr(getattr(adversary, "result", None), "status", "") == "unsolved")
    return KeyCurve(np.array(at), **{name: np.array(rows) for name, rows in found.items()}, leaked=leaked, tests=tests)


def success_curve(
    schema: Schema, attack: MakeAttack, source: Source, keys: int, pairs: Sequence[int] | int, seed: int = 0
) -> Curve:
    """Attack several keys (see `key_curve`).

    Raises:
        InputError: for less than one key.
    """
    if keys < 1:
        raise InputError(f"keys: {keys} is too small; give 1 or more")
    curves = [key_curve(schema, attack, source, key, pairs, seed) for key in range(keys)]
    rows = (np.stack([getattr(c, name) for c in curves]) for name in ("success", "errors", "unsolved"))
    return Curve(curves[0].pairs, *rows)


def quality(pairs: Sequence[float] | IntArray, success: Sequence[float] | IntArray, p: float) -> float:
    """Q_p: the smallest number of pairs with A(m) >= p; infinite where the curve does not get there.

    Raises:
        InputError: p is not between 0 and 1.
    """
    if not 0 < p <= 1:
        raise InputError(f"p: {p} is no share; give more than 0 and at most 1")
    reached = [float(m) for m, share in zip(pairs, success, strict=True) if share >= p]
    return min(reached, default=math.inf)


def counting_bound(schema: Schema, challenge: Challenge) -> float:
    """Pairs that can carry the whole key at best: its content over the digits of a response like this challenge's."""
    return schema.key_digits / schema.response_digits(challenge)


def coverage_model(length: int, pairs: float, distinct: float | None = None) -> float:
    """Chance that all letters of a fresh challenge have leaked, letters taken for independent: (1 - (25/26)^(n m))^d.

    Args:
        length: letters n of a challenge.
        pairs: leaked pairs m.
        distinct: exponent d; None takes n.
    """
    return float((1 - (25 / 26) ** (length * pairs)) ** (length if distinct is None else distinct))


def expected_distinct(length: int) -> float:
    """Expected number of distinct letters among so many uniform ones."""
    return float(26 * (1 - (25 / 26) ** length))


def coverage(length: int, pairs: int) -> float:
    """The same chance exactly: over the number k of distinct letters, all of which must be among the leaked ones.

    By inclusion and exclusion P(k given letters all leaked) = sum_j (-1)^j C(k, j) (1 - j/26)^(n m) (derived).
    """
    chance = np.zeros(length + 1)  # of k distinct letters so far
    chance[0] = 1.0
    for _ in range(length):
        k = np.arange(length + 1)
        chance = chance * k / 26 + np.concatenate(([0.0], (chance * (26 - k) / 26)[:-1]))
    leaked = length * pairs

    def all_seen(k: int) -> float:
        return math.fsum((-1) ** j * math.comb(k, j) * (1 - j / 26) ** leaked for j in range(k + 1))

    return math.fsum(float(chance[k]) * all_seen(k) for k in range(length + 1))
