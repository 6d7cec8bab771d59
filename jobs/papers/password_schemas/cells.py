"""What the cells compute."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jobs.claims import MetricRow, scalar_rows
from jobs.papers.password_schemas.names import SITES
from lightning_modules.passwords.catalog import make_schema
from lightning_modules.passwords.challenges import Challenge, RandomSource, SiteSource
from lightning_modules.passwords.direct import MentalHash, permutation
from lightning_modules.passwords.exact import AllInformationAdversary
from lightning_modules.passwords.linear import LinearAttack
from lightning_modules.passwords.pairs import Attack, MemorisingAttack, Pair
from lightning_modules.passwords.quality import Source, counting_bound, success_curve
from lightning_modules.passwords.schemas import Schema
from lightning_modules.passwords.security import pairs_until_determined
from lightning_modules.passwords.solving import ConstraintAttack


def example() -> list[MetricRow]:
    """The worked example, with g as a cycle and as a table, and what a key holds."""
    schema = MentalHash()
    f = np.zeros(26, np.int64)
    f[:3] = 8, 3, 7
    cycle = permutation("0298736514", cycle=True)
    spoken = [schema.respond({"f": f, "g": g}, ["abc"])[0] for g in (cycle, permutation("".join(map(str, cycle))))]
    return scalar_rows(
        {
            "cycle": int(spoken[0]),
            "table": int(spoken[1]),
            "key digits": schema.key_digits,
            "counting bound": counting_bound(schema, "a" * 8),
        }
    )


def curve(
    name: str, seed: int, source: str, keys: int, tests: int, attack: str, points: str, limit: float = 1.0
) -> list[MetricRow]:
    """Success after each number of leaked pairs, and how a schema is described."""
    schema = make_schema(name)
    made: Source = SiteSource() if source == SITES else RandomSource(int(source.removeprefix("letters-")), tests)
    attacks: list[Attack] = []

    def make(of: Schema) -> Attack:
        attacks.append(_attack(of, attack, limit))
        return attacks[-1]

    at: Any = int(points.split("-")[1]) if "-" in points else list(map(int, points.split()))
    found = success_curve(schema, make, made, keys, at, seed)
    columns = {"success": found.mean, "wrong": found.wrong.mean(0), "unsolved": found.unsolved.mean(0)}
    columns |= {"least": found.success.min(0), "most": found.success.max(0)}
    rows: list[MetricRow] = [
        (int(m), "", "test", metric, float(values[i]))
        for metric, values in columns.items()
        for i, m in enumerate(found.pairs)
    ]
    typical: Challenge = "a" * (made.length if isinstance(made, RandomSource) else 7)
    about = {"human cost": schema.human_cost(typical), "key digits": schema.key_digits}
    about["response digits"] = schema.response_digits(typical)
    about["alternatives"] = schema.multiplicity(typical, "0" * int(about["response digits"]))
    rows += scalar_rows(
        {metric: value for metric, value in about.items() if not math.isnan(value)}, environment="schema"
    )
    linear = [a.rank() for a in attacks if isinstance(a, LinearAttack)]
    if linear:
        ranks: dict[str, float] = {f"{word} rank modulo {p}": kind(rank[i] for rank in linear) for i, p in enumerate((2, 5)) for word, kind in (("least", min), ("most", max))}  # fmt: skip
        rows += scalar_rows(ranks, int(found.pairs[-1]), "rank")
    work = [result.deterministic_time for a in attacks if isinstance(a, ConstraintAttack) for result in a.history]
    if work and attack == "cp-sat":
        rows += scalar_rows({"deterministic seconds": max(work)}, int(found.pairs[-1]), "solver")
    return rows


def _attack(schema: Schema, name: str, limit: float) -> Attack:
    if name == "memory":
        return MemorisingAttack()
    if name.startswith("linear"):
        return LinearAttack(schema, guess=name != "linear")
    return ConstraintAttack(schema, limit, name)


def _leak(
    schema: Schema, key: int, pairs: int, tests: int
) -> tuple[dict[str, Any], list[Pair], list[Challenge], list[str]]:
    """A key, leaked pairs, fresh challenges and the true responses; random streams as in `key_curve`."""
    rngs = [np.random.default_rng([0, key, stream]) for stream in range(3)]
    secret = schema.keygen(rngs[0])
    leaked, asked = RandomSource(8, tests).draw(schema, rngs[1], rngs[2], pairs)
    return secret, list(zip(leaked, schema.respond(secret, leaked), strict=True)), asked, schema.respond(secret, asked)


def exact(name: str, key: int, pairs: int) -> list[MetricRow]:
    """The linear attack beside all keys that are left, on ten fresh challenges."""
    schema = MentalHash()
    _, leaked, asked, truth = _leak(schema, key, pairs, 10)
    linear, unlimited = LinearAttack(schema), AllInformationAdversary(schema)
    for challenge, response in leaked:
        linear.observe(challenge, response)
        unlimited.observe(challenge, response)
    answers = linear.predict_many(asked), unlimited.predict_many(asked)
    right = [float(np.mean([a == true for a, true in zip(found, truth, strict=True)])) for found in answers]
    wrong = [sum(a is not None and a != true for a, true in zip(found, truth, strict=True)) for found in answers]
    values = {"computer": right[0], "unlimited": right[1], "wrong": float(sum(wrong))}
    return scalar_rows({**values, "permutations": float(unlimited.count())}, pairs)


def effort(name: str, key: int, pairs: int, limit: float, solver: str) -> list[MetricRow]:
    """What it takes to find a key, and how well that key answers 40 fresh challenges."""
    schema = make_schema(name)
    secret, leaked, asked, truth = _leak(schema, key, pairs, 40)
    attack = ConstraintAttack(schema, limit, solver)
    result = attack.solve(leaked)
    values = {"solved": float(result.status == "solved"), "conflicts": float(result.conflicts), "limit": limit}
    if solver == "cp-sat":
        values["deterministic seconds"] = result.deterministic_time
    if result.key is not None:
        challenges, responses = zip(*leaked, strict=True)
        again = schema.respond(result.key, challenges)
        values["reproduced"] = float(np.mean([a == b for a, b in zip(again, responses, strict=True)]))
        values["true key fits"] = float(attack.consistent(leaked, secret) is True)
        values["success"] = float(
            np.mean([a == b for a, b in zip(schema.respond(result.key, asked), truth, strict=True)])
        )
    return scalar_rows(values, pairs)


def proof(name: str, key: int, most: int) -> list[MetricRow]:
    """Pairs from which five fresh responses are proven to be determined; of the mental hash also by all keys that are left."""
    schema = make_schema(name)
    _, leaked, asked, truth = _leak(schema, key, most, 5)
    attack = ConstraintAttack(schema, 5.0)
    found = [pairs_until_determined(attack, leaked, c, r) for c, r in zip(asked, truth, strict=True)]
    rows: list[MetricRow] = []
    for number, each in enumerate(found):
        values = {"pairs": each.pairs if math.isfinite(each.pairs) else most + 1.0, "exact": float(each.exact)}
        rows += scalar_rows(values, number)
    if name == "mental-hash":
        unlimited = AllInformationAdversary()
        first = [most + 1] * len(asked)
        for m, (challenge, response) in enumerate(leaked, 1):
            unlimited.observe(challenge, response)
            if m >= 3:  # before that all 10! permutations may be left, and nothing is known
                for number, answer in enumerate(unlimited.predict_many(asked)):
                    first[number] = min(first[number], m) if answer is not None else first[number]
        rows += [row for number, m in enumerate(first) for row in scalar_rows({"pairs, all keys": float(m)}, number)]
    return rows
