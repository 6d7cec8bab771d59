"""The claims, from what the cells stored."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from jobs.claims import Claim, Results, Scale, least, most
from jobs.papers.password_schemas.names import (
    EASY,
    EFFORT,
    EXACT,
    EXACT_PAIRS,
    EXAMPLE,
    HARD_LIMIT,
    LARGER,
    LONG_LIMIT,
    ORDERED,
    PROOF,
    QUALITY,
    SITES,
    numbers,
    words,
)

_PROTOTYPE = "ours, prototype"


def claims(results: Results, scale: Scale) -> list[Claim]:
    """Each statement beside the figure measured."""
    made = [
        *_example(results),
        *_running(results),
        *_words(results),
        *_hash(results),
        *_sites(results),
        *_unlimited(results),
    ]
    made += [*_hidden(results), *_easy(results), *_ordered(results), *_properties(results)]
    return made + (_larger(results) if scale == "paper" else [])


def curve(
    results: Results, name: str, source: str, attack: str = "linear", metric: str = "success"
) -> tuple[list[int], list[float]]:
    """A stored curve: leaked pairs, and a figure of each."""
    at = {"experiment": QUALITY, "method": name, "source": source, "attack": attack, "environment": ""}
    return results.curve(metric, "step", **at)


def reached(results: Results, name: str, source: str, p: float, attack: str = "linear") -> float:
    """Q_p of a stored curve; NaN where it does not get there."""
    pairs, shares = curve(results, name, source, attack)
    return next((float(m) for m, share in zip(pairs, shares, strict=True) if share >= p), math.nan)


def _quality(
    results: Results, name: str, words: str, source: str, known: tuple[float, float], within: float
) -> list[Claim]:
    told = f"{_PROTOTYPE}: {known[0]:g} and {known[1]:g}"
    return [
        Claim(f"{name}, {words}: leaked pairs until half of all fresh responses are known", known[0], reached(results, name, source, 0.5), within, told),
        Claim(f"{name}, {words}: leaked pairs until nine tenths are known", known[1], reached(results, name, source, 0.9), within, told),
    ]  # fmt: skip


def _example(results: Results) -> list[Claim]:
    at = {"experiment": EXAMPLE}
    return [
        Claim("mental-hash, worked example (a=8, b=3, c=7, cycle 0298736514): response to abc", 103, results.mean("cycle", **at), 0.0, "field standard: Blum's procedure"),
        Claim("the same with the permutation written as a table", 103, results.mean("table", **at), 0.0, "derived"),
        Claim("mental-hash: content of a key in digits", 32.56, results.mean("key digits", **at), 0.005, "derived"),
        Claim("mental-hash: pairs of 8 letters that can carry it at best", 4.07, results.mean("counting bound", **at), 0.005, "derived"),
    ]  # fmt: skip


def _running(results: Results) -> list[Claim]:
    from lightning_modules.passwords.quality import coverage, coverage_model, expected_distinct

    made = _quality(results, "running-sum", "8 letters", "letters-8", (8, 14), 1)
    for length, distinct, told in (
        (8, 8.0, "8"),
        (12, expected_distinct(12), "9.8, the expected number of distinct letters"),
    ):
        pairs, shares = curve(results, "running-sum", f"letters-{length}")
        model = most([abs(s - coverage_model(length, m, distinct)) for m, s in zip(pairs, shares, strict=True)])
        exact = most([abs(s - coverage(length, m)) for m, s in zip(pairs, shares, strict=True)])
        made += [
            Claim(f"running-sum, {length} letters: success less (1-(25/26)^({length} m))^d, d = {told}, largest", 0.0, model, 0.1, _PROTOTYPE),
            Claim(f"running-sum, {length} letters: success less the exact chance that all letters have leaked, largest", 0.0, exact, 0.1, "derived"),
        ]  # fmt: skip
    memory = most(curve(results, "running-sum", "letters-8", "memory")[1])
    made.append(Claim("running-sum: success of an adversary that only remembers, largest", 0.0, memory, 0.0, "derived"))
    return made


def _words(results: Results) -> list[Claim]:
    guess = {
        "experiment": QUALITY,
        "method": "word-sum",
        "source": "letters-8",
        "attack": "linear with guesses",
        "environment": "",
    }
    made = [
        Claim("word-sum, 8 letters: success with guesses after 20 pairs", 0.1, results.mean("success", **guess, step=20), 0.04, f"{_PROTOTYPE}: at chance"),
        *_quality(results, "word-sum", "8 letters", "letters-8", (26, 28.5), 1),
    ]  # fmt: skip
    for length, ranks in ((8, (25, 26)), (5, (26, 25)), (7, (26, 26))):
        at = {
            "experiment": QUALITY,
            "method": "word-sum",
            "source": f"letters-{length}",
            "attack": "linear",
            "environment": "rank",
        }
        for prime, rank in zip((2, 5), ranks, strict=True):
            found = most(results.values(f"most rank modulo {prime}", **at))
            low = least(results.values(f"least rank modulo {prime}", **at))
            made.append(
                Claim(
                    f"word-sum, {length} letters: largest rank modulo {prime} after 40 pairs",
                    rank,
                    found,
                    0.0,
                    f"derived; {_PROTOTYPE}",
                )
            )
            made.append(
                Claim(
                    f"word-sum, {length} letters: smallest rank modulo {prime} after 40 pairs",
                    rank,
                    low,
                    0.0,
                    _PROTOTYPE,
                )
            )
    return made  # fmt: skip


def _hash(results: Results) -> list[Claim]:
    wrong = [
        value
        for name in ("word-sum", "running-sum", "mental-hash")
        for value in results.values("wrong", experiment=QUALITY, method=name, attack="linear", environment="")
    ]
    gap = {
        p: reached(results, "mental-hash", "letters-8", p) - reached(results, "running-sum", "letters-8", p)
        for p in (0.5, 0.9)
    }
    return [
        *_quality(results, "mental-hash", "8 letters", "letters-8", (8, 13), 1),
        *_quality(results, "mental-hash", "12 letters", "letters-12", (6, 9), 1),
        Claim("linear attack on all direct schemas: share of wrong answers, largest", 0.0, most(wrong), 0.0, f"derived; {_PROTOTYPE}"),
        Claim("8 letters: pairs that the secret permutation adds at nine tenths, mental-hash less running-sum", 0.0, gap[0.9], 1.0, f"{_PROTOTYPE}: buys nothing"),
        Claim("8 letters: pairs that it adds at one half", 0.0, gap[0.5], 1.0, f"{_PROTOTYPE}: buys nothing"),
    ]  # fmt: skip


def _sites(results: Results) -> list[Claim]:
    made = _quality(results, "mental-hash", "site names", SITES, (8, 21), 2)
    made += _quality(results, "running-sum", "site names", SITES, (8, 22), 2)
    later = reached(results, "mental-hash", SITES, 0.9) - reached(results, "mental-hash", "letters-8", 0.9)
    made.append(
        Claim(
            "mental-hash: pairs that rare letters of site names add at nine tenths",
            5,
            later,
            0.0,
            f"{_PROTOTYPE}: 8",
            "at least",
        )
    )
    return made


def _unlimited(results: Results) -> list[Claim]:
    made = []
    known = {6: "0.292 against 0.308", 8: "equal, 0.392", 10: "equal, 0.642"}
    for pairs in EXACT_PAIRS:
        at = {"experiment": EXACT, "step": pairs}
        gap = results.mean("unlimited", **at) - results.mean("computer", **at)
        source = "paper, abstract: a computer extracts all the information" + (
            f"; {_PROTOTYPE}: {known[pairs]}" if pairs in known else ""
        )
        made.append(
            Claim(
                f"mental-hash, 8 letters, {pairs} pairs: success of an unlimited adversary above the linear attack's",
                0.0,
                gap,
                0.02,
                source,
            )
        )
    wrong = most(results.values("wrong", experiment=EXACT))
    made.append(
        Claim("unlimited adversary and linear attack: wrong answers, largest number", 0.0, wrong, 0.0, "derived")
    )
    hash_rows = {"experiment": PROOF, "method": "mental-hash"}
    by_proof = {(row["seed"], row["step"]): row["value"] for row in results.rows(metric="pairs", **hash_rows)}
    by_keys = {(row["seed"], row["step"]): row["value"] for row in results.rows(metric="pairs, all keys", **hash_rows)}
    apart = most([abs(by_proof[at] - by_keys.get(at, math.nan)) for at in by_proof])
    made.append(
        Claim(
            "mental-hash: pairs until a response is determined, CP-SAT's proof less all keys gone through, largest difference",
            0.0,
            apart,
            0.0,
            "derived",
        )
    )
    return made  # fmt: skip


def _hidden(results: Results) -> list[Claim]:
    at = {"experiment": QUALITY, "method": "skip-sum", "source": "letters-8", "attack": "cp-sat"}

    def of(metric: str, step: int) -> float:
        return results.mean(metric, **at, environment="", step=step)

    second = {**at, "attack": "glucose", "environment": ""}
    seconds = most(results.values("deterministic seconds", **{**at, "environment": "solver"}))
    proven = results.values("pairs", experiment=PROOF, method="skip-sum")
    two = {
        "experiment": QUALITY,
        "method": "two-pass-running-sum",
        "source": "letters-8",
        "attack": "cp-sat",
        "keys": 3,
        "environment": "",
    }
    return [
        Claim("skip-sum through CP-SAT, 8 letters, three keys: success after 5 pairs, largest", 0.0, of("most", 5), 0.1, f"{_PROTOTYPE}: 0"),
        Claim("skip-sum: success after 10 pairs, least", 0.56, of("least", 10), 0.1, f"{_PROTOTYPE}: 0.56 to 1.0", "at least"),
        Claim("skip-sum: success after 15 pairs, least", 1.0, of("least", 15), 0.0, f"{_PROTOTYPE}: 1.0"),
        Claim("skip-sum: success after 30 pairs, least", 1.0, of("least", 30), 0.0, "ours"),
        Claim("skip-sum: deterministic seconds of a search, largest", 0.1, seconds, 0.0, _PROTOTYPE, "at most"),
        Claim("skip-sum: success after 30 pairs through Glucose, least", 1.0, results.mean("least", **second, step=30), 0.0, "ours"),
        Claim("skip-sum: pairs until a fresh response is proven determined, median of 15", 10, median(proven) if proven else math.nan, 5, f"derived from {_PROTOTYPE}: between 5 and 15"),
        Claim("two-pass running-sum through CP-SAT, 8 letters, three keys: success after 30 pairs, least", 1.0, results.mean("least", **two, step=30), 0.0, "ours"),
    ]  # fmt: skip


def searches(results: Results, metric: str, name: str, pairs: int, solver: str = "cp-sat", **more: Any) -> list[float]:
    """Figures of searches, in the order of keys."""
    return results.values(metric, experiment=EFFORT, method=name, pairs=pairs, solver=solver, **more)


def _easy(results: Results) -> list[Claim]:
    n = numbers(EASY)[2]
    made = []
    all_solved = [
        value for times in (1, 1.5, 4) for value in searches(results, "solved", EASY, int(times * n), seed=(0, 1, 2))
    ]
    seconds = most(
        [
            value
            for times in (1, 1.5, 4)
            for value in searches(results, "deterministic seconds", EASY, int(times * n), seed=(0, 1, 2))
        ]
    )
    made += [
        Claim(f"pointer-sum(1,1), n = {n}, three keys: share of searches solved", 1.0, sum(all_solved) / len(all_solved) if all_solved else math.nan, 0.0, _PROTOTYPE),
        Claim(f"pointer-sum(1,1), n = {n}: deterministic seconds of a search, largest", 1.0, seconds, 0.0, _PROTOTYPE, "at most"),
    ]  # fmt: skip
    for times, bar, known in ((1.0, 0.5, "0.5 to 0.7"), (1.5, 0.75, "at least 0.75"), (4.0, 1.0, "1.0")):
        found = least(searches(results, "success", EASY, int(times * n), seed=(0, 1, 2)))
        made.append(
            Claim(
                f"pointer-sum(1,1): success with {times:g} n pairs, least",
                bar,
                found,
                0.0,
                f"{_PROTOTYPE}: {known}",
                "at least",
            )
        )
    conflicts = {times: searches(results, "conflicts", EASY, times * n, seed=(0, 1, 2)) for times in (1, 4)}
    fewer = median(conflicts[1]) / median(conflicts[4]) if conflicts[1] and conflicts[4] else math.nan
    made.append(
        Claim(
            "pointer-sum(1,1): median conflicts with n pairs over those with 4 n pairs",
            3.0,
            fewer,
            0.0,
            f"{_PROTOTYPE}: 4908 over 220; easy again with many pairs",
            "at least",
        )
    )
    return made  # fmt: skip


def _ordered(results: Results) -> list[Claim]:
    def conflicts(name: str, solver: str) -> float:
        found = searches(results, "conflicts", name, 28, solver, seed=(0, 1, 2))
        return float(median(found)) if found else math.nan

    made = []
    for solver in ("cp-sat", "glucose"):
        one_two, two_one, two_two = (conflicts(name, solver) for name in ORDERED)
        unit = f"n = 14, 28 pairs, {solver}: median conflicts of three keys"
        made += [
            Claim(f"{unit}, pointer-sum(2,2) less (2,1)", 0.0, two_two - two_one, 0.0, f"{_PROTOTYPE}: over 27145, 3491; paper, abstract: hide which rule was used", "at least"),
            Claim(f"{unit}, pointer-sum(2,1) less (1,2)", 0.0, two_one - one_two, 0.0, f"{_PROTOTYPE}: 3491, 145", "at least"),
        ]  # fmt: skip
    solved = searches(results, "solved", "pointer-sum-2-2-14", 28, seed=0)
    made.append(
        Claim(
            f"{words('pointer-sum-2-2-14', 28)}, key 0: solved within {HARD_LIMIT:g} deterministic seconds (unsolved is not secure)",
            0.0,
            most(solved),
            0.0,
            f"{_PROTOTYPE}: unsolved",
        )
    )
    two_pass = [
        value
        for name in ("word-sum", "mental-hash")
        for value in results.values(
            "unsolved", experiment=QUALITY, method=f"two-pass-{name}", attack="glucose", environment="", step=30
        )
    ]
    made.append(
        Claim(
            "two-pass word-sum and mental-hash, 30 pairs: searches unsolved within 50,000 conflicts of Glucose (unsolved is not secure)",
            1.0,
            sum(two_pass) / len(two_pass) if two_pass else math.nan,
            0.0,
            "ours",
        )
    )
    return made  # fmt: skip


def _properties(results: Results) -> list[Claim]:
    return [
        Claim("every key that a solver returned: share of leaked responses that it gives, least", 1.0, least(results.values("reproduced", experiment=EFFORT)), 0.0, "derived"),
        Claim("the true key added as a constraint: share of cases that stay feasible, least", 1.0, least(results.values("true key fits", experiment=EFFORT)), 0.0, "derived"),
    ]  # fmt: skip


def _larger(results: Results) -> list[Claim]:
    made = []
    known = {
        ("pointer-sum-1-2-26", 52): (1.0, "solved"),
        ("pointer-sum-1-3-14", 28): (1.0, "solved"),
        ("pointer-sum-2-1-20", 40): (1.0, "solved"),
    }
    for name, pairs in LARGER:
        expected, told = known.get((name, pairs), (0.0, "not solved"))
        found = searches(results, "solved", name, pairs, limit=LONG_LIMIT, seed=0)
        made.append(
            Claim(
                f"{words(name, pairs)}, key 0: solved within {LONG_LIMIT:g} deterministic seconds (unsolved is not secure)",
                expected,
                most(found),
                0.0,
                f"{_PROTOTYPE}: {told}",
            )
        )
    return made  # fmt: skip
