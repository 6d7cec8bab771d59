"""The worst shift for given scores. Both risks depend on a cost through the shift k alone."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.strategic.cost_sets import CostSet, FiniteCostSet
from lightning_modules.strategic.costs import Array
from lightning_modules.strategic.responses import strategic_hinge


def worst_case_shift(
    scores: Array,
    y: Array,
    k_min: float,
    k_max: float,
    loss: Literal["hinge", "zero_one"] = "hinge",
    lam: float = 0.0,
) -> tuple[float, float]:
    """Find the shift in [k_min, k_max] with the largest mean loss plus lam k.

    The hinge is convex in k, so an end is the worst: two evaluations. The 0-1 risk is not: it rises only where k reaches -s of
    a negative, so the candidates are k_min and those (from the left closed: at k = -s that negative is accepted already, and
    a positive with the same score is so too). They are counted with two sorted arrays, O(n log n).

    Args:
        scores: [n] before anybody moves.
        y: [n] -1 or +1.
        k_min: of the costliest cost.
        k_max: of the cheapest.
        loss: which.
        lam: of the hinge only.

    Returns:
        The shift (the smallest of equals) and the value.

    Raises:
        InputError: k_min above k_max or below 0, another loss, or lam with the 0-1 risk.

    Source: derived.
    """
    if not 0 <= k_min <= k_max:
        raise InputError(f"k_min: {k_min} and k_max: {k_max} are no interval of shifts; give 0 <= k_min <= k_max")
    if loss == "hinge":
        values = [float(strategic_hinge(scores, y, k).mean() + lam * k) for k in (k_min, k_max)]
        return (k_min, values[0]) if values[0] >= values[1] else (k_max, values[1])
    if loss != "zero_one":
        raise InputError(f"loss: unknown {loss!r}; choose hinge or zero_one")
    if lam:
        raise InputError("lam: goes with the hinge only; leave it out")
    candidates = np.concatenate([[k_min], _reached(scores, y, k_min, k_max)])
    risks = zero_one_risks(scores, y, candidates)
    best = int(np.lexsort((candidates, -risks))[0])
    return float(candidates[best]), float(risks[best])


def _reached(scores: Array, y: Array, k_min: float, k_max: float) -> Array:
    """Shifts within the interval at which a negative comes to be accepted."""
    reached = -scores[y < 0]
    return np.unique(reached[(reached >= k_min) & (reached <= k_max)])


def zero_one_risks(scores: Array, y: Array, shifts: Array) -> Array:
    """Strategic 0-1 risk at every shift [m], O((n + m) log n)."""
    positive, negative = np.sort(-scores[y > 0]), np.sort(-scores[y < 0])
    refused_positives = len(positive) - np.searchsorted(positive, shifts, side="right")
    accepted_negatives = np.searchsorted(negative, shifts, side="right")
    risks: Array = (refused_positives + accepted_negatives) / len(scores)
    return risks


def worst_case_error(inputs: Array, y: Array, w: Array, b: float, uncertainty: CostSet) -> tuple[float, float]:
    """Largest strategic 0-1 risk over a set of costs: (shift, risk). Of a list of costs only its own shifts count."""
    scores = inputs @ w + b
    if isinstance(uncertainty, FiniteCostSet):
        shifts = uncertainty.shifts(w)
        risks = zero_one_risks(scores, y, shifts)
        return float(shifts[risks.argmax()]), float(risks.max())
    return worst_case_shift(scores, y, *uncertainty.shift_interval(w), loss="zero_one")
