"""Names and settings that the cells, claims and figures share."""

from typing import Any

EXAMPLE, QUALITY, EXACT, EFFORT, PROOF = (
    "password_schemas/example",
    "password_schemas/quality",
    "password_schemas/exact",
    "password_schemas/effort",
    "password_schemas/proof",
)
NOTE = "schemas are evaluated; this is no password manager"

SITES = "sites"
DIRECT = ("word-sum", "running-sum", "mental-hash")
MOST = {"word-sum": 40, "running-sum": 30, "mental-hash": 30}
"""Most leaked pairs of a direct schema's curve."""
EXACT_PAIRS = (4, 5, 6, 8, 10)
SOLVER_POINTS = "5 10 15 20 30"
"""Leaked pairs after which a solver is asked for a curve."""

EASY, SMALL_N = "pointer-sum-1-1-26", 14
EASY_LIMIT, HARD_LIMIT, LONG_LIMIT = 3.0, 15.0, 25.0
"""Deterministic seconds of a search: where it is solved, in the hard zone, and in the larger cases."""
GLUCOSE_LIMIT = 200_000.0
"""Conflicts of a search of the second solver."""
EASY_TIMES = (0.5, 1.0, 1.5, 2.0, 4.0)
"""Pairs as multiples of n."""
ORDERED = ("pointer-sum-1-2-14", "pointer-sum-2-1-14", "pointer-sum-2-2-14")
LARGER: tuple[tuple[str, int], ...] = (
    ("pointer-sum-1-2-26", 52),
    ("pointer-sum-1-3-14", 28),
    ("pointer-sum-2-1-20", 40),
    ("pointer-sum-2-1-26", 52),
    ("pointer-sum-2-2-14", 56),
    ("pointer-sum-2-2-14", 140),
)


def numbers(name: str) -> tuple[int, int, int]:
    """k1, k2 and n of a pointer-sum's name."""
    k1, k2, n = map(int, name.removeprefix("pointer-sum-").split("-"))
    return k1, k2, n


def words(name: str, pairs: int) -> str:
    """A pointer-sum and its pairs, for claims."""
    k1, k2, n = numbers(name)
    return f"pointer-sum({k1},{k2}), n = {n}, {pairs} pairs"


def curve_settings(source: str, keys: int, tests: int, attack: str, points: str) -> dict[str, Any]:
    """Settings of a cell of a success curve."""
    return {"source": source, "keys": keys, "tests": tests, "attack": attack, "points": points}
