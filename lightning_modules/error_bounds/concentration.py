"""How far empirical figures may lie from true ones."""

from __future__ import annotations

import math

from lightning_modules.errors import InputError


def concentration_term(n_source: int, n_target: int, delta: float) -> float:
    """What is added to the empirical bound so that it holds with probability 1 - delta.

    eps = sqrt((n_S + 4 n_T) log(1 / delta) / (2 n_S n_T)): Hoeffding's inequality for one joint event. A source row adds the
    difference of two indicators (range 2), a target row one indicator (range 1); all terms share the same source rows.

    Args:
        n_source: labelled source rows that the bound is evaluated on (the validation half).
        n_target: target rows that it is evaluated on.
        delta: probability that the inequality fails.

    Raises:
        InputError: sizes below 1, or delta outside (0, 1).

    Source: Rosenfeld & Garg 2023; the range of each summand and the single event as in its code.
    """
    if n_source < 1 or n_target < 1:
        raise InputError(f"rows: {n_source} source and {n_target} target rows; give at least one of each")
    if not 0 < delta < 1:
        raise InputError(f"delta: {delta} is not between 0 and 1; give e.g. 0.01")
    return math.sqrt((n_source + 4 * n_target) * math.log(1 / delta) / (2 * n_source * n_target))
