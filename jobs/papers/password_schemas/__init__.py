"""Password schemas for people: how many leaked passwords until a computer, or an unlimited adversary, knows the next one.

Schemas are evaluated here; this is no password manager. A search that ends at its limit is stored as unsolved with that
limit, which does not mean secure. `cells.py` computes cells, `statements.py` holds the claims, `drawings.py` the figures, `names.py` what they
share.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.trial import Trial
from jobs.claims import MetricRow, Scale, cell, settings
from jobs.papers.password_schemas.drawings import figures
from jobs.papers.password_schemas.names import (
    DIRECT,
    EASY,
    EASY_LIMIT,
    EASY_TIMES,
    EFFORT,
    EXACT,
    EXACT_PAIRS,
    EXAMPLE,
    GLUCOSE_LIMIT,
    HARD_LIMIT,
    LARGER,
    LONG_LIMIT,
    MOST,
    ORDERED,
    PROOF,
    QUALITY,
    SITES,
    SOLVER_POINTS,
    curve_settings,
    numbers,
)
from jobs.papers.password_schemas.statements import claims

__all__ = ["SOURCE", "TITLE", "claims", "figures", "plan", "run"]

TITLE = "Human-Usable Password Schemas: Beyond Information-Theoretic Security (schemas are evaluated; this is no password manager)"
SOURCE = "Rosenfeld, Vempala & Blum, 2019 (thesis of 2016), arXiv 1906.00029"


def plan(scale: Scale) -> list[Trial]:
    """Cells of the small scale (under four minutes of one core), or those, more keys and larger cases."""
    cells = [cell(EXAMPLE, "mental-hash"), *_curves(), *_searches(3)]
    cells += [cell(EXACT, "mental-hash", key, pairs=pairs) for key in range(12) for pairs in EXACT_PAIRS]
    cells += [
        cell(PROOF, name, key, most=most) for name, most in (("skip-sum", 24), ("mental-hash", 16)) for key in range(3)
    ]
    if scale == "paper":
        known = {trial.trial_id for trial in cells}
        cells += [trial for trial in _searches(10) if trial.trial_id not in known]
        cells += [cell(EXACT, "mental-hash", key, pairs=m) for key in range(12, 60) for m in EXACT_PAIRS]
        cells += [_search(name, key, m, LONG_LIMIT) for name, m in LARGER for key in range(3)]
        cells += [
            _search(f"pointer-sum-1-1-{n}", key, int(times * n), EASY_LIMIT)
            for n in range(12, 26, 2)
            for times in EASY_TIMES
            for key in range(5)
        ]
        cells += [
            cell(
                QUALITY,
                f"two-pass-{name}",
                0,
                **curve_settings("letters-8", 10, 40, "cp-sat", SOLVER_POINTS),
                limit=LONG_LIMIT,
            )
            for name in DIRECT
        ]
    return cells  # fmt: skip


def _curves() -> list[Trial]:
    """Success curves of all schemas on random letters and on site names."""
    cells = []
    for name in DIRECT:
        points = f"1-{MOST[name]}"
        for source in ("letters-5", "letters-8", "letters-12", SITES):
            large = name == "running-sum" and source == "letters-8"
            keys, tests = (100, 60) if large else (30, 40)
            cells.append(cell(QUALITY, name, 0, **curve_settings(source, keys, tests, "linear", points)))
    cells.append(cell(QUALITY, "word-sum", 0, **curve_settings("letters-7", 30, 40, "linear", "1-40")))
    cells.append(cell(QUALITY, "word-sum", 0, **curve_settings("letters-8", 30, 40, "linear with guesses", "1-40")))
    cells.append(cell(QUALITY, "running-sum", 0, **curve_settings("letters-8", 30, 40, "memory", "1-40")))
    for source in ("letters-5", "letters-8", "letters-12", SITES):
        cells.append(
            cell(QUALITY, "skip-sum", 0, **curve_settings(source, 3, 40, "cp-sat", SOLVER_POINTS), limit=HARD_LIMIT)
        )
    cells.append(
        cell(
            QUALITY, "skip-sum", 0, **curve_settings("letters-8", 3, 40, "glucose", SOLVER_POINTS), limit=GLUCOSE_LIMIT
        )
    )
    for source in ("letters-8", SITES):
        cells.append(
            cell(
                QUALITY,
                "two-pass-running-sum",
                0,
                **curve_settings(source, 3, 40, "cp-sat", SOLVER_POINTS),
                limit=HARD_LIMIT,
            )
        )
    for name in ("two-pass-word-sum", "two-pass-mental-hash"):
        cells.append(cell(QUALITY, name, 0, **curve_settings("letters-8", 1, 40, "glucose", "10 30"), limit=50_000.0))
    return cells  # fmt: skip


def _searches(keys: int) -> list[Trial]:
    """Searches for keys of pointer sums."""
    n = numbers(EASY)[2]
    cells = [_search(EASY, key, int(times * n), EASY_LIMIT) for times in EASY_TIMES for key in range(keys)]
    cells += [_search(EASY, key, 4 * n, GLUCOSE_LIMIT, "glucose") for key in range(keys)]
    for name in ORDERED:
        cells += [_search(name, key, 28, HARD_LIMIT) for key in range(keys)]
        cells += [_search(name, key, 28, GLUCOSE_LIMIT, "glucose") for key in range(keys)]
    return cells


def _search(name: str, key: int, pairs: int, limit: float, solver: str = "cp-sat") -> Trial:
    return cell(EFFORT, name, key, pairs=pairs, limit=limit, solver=solver)


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    from jobs.papers.password_schemas import cells

    kinds: dict[str, Callable[..., list[MetricRow]]] = {
        QUALITY: cells.curve,
        EXACT: cells.exact,
        EFFORT: cells.effort,
        PROOF: cells.proof,
    }
    if trial.dataset == EXAMPLE:
        return cells.example()
    return kinds[trial.dataset](trial.method, trial.seed, **settings(trial))
