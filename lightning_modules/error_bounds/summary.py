"""How good predictions were over many shifts whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lightning_modules.error_bounds.evidence import Array
from lightning_modules.errors import InputError


@dataclass(frozen=True)
class Summary:
    """Figures over shifts.

    Args:
        mae: mean |predicted - true error|.
        coverage: share of shifts whose true error is at most the predicted.
        overestimation: mean amount by which accuracy was overestimated, over the shifts that are not covered; 0 if none.
        count: number of shifts.
    """

    mae: float
    coverage: float
    overestimation: float
    count: int


def summarise_estimates(predicted: Sequence[float] | Array, true: Sequence[float] | Array) -> Summary:
    """Compare predicted with true errors.

    Raises:
        InputError: for no shift, lengths that differ, or NaN.

    Source: Rosenfeld & Garg 2023, the measures of its table of methods.
    """
    p, t = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if p.shape != t.shape or p.ndim != 1 or not len(p):
        raise InputError(f"predicted: has shape {list(p.shape)}, true {list(t.shape)}; give one of each a shift")
    if not (np.isfinite(p).all() and np.isfinite(t).all()):
        raise InputError("predicted: or true has NaN or infinite numbers; leave those shifts out")
    missed = t > p
    overestimation = float((t - p)[missed].mean()) if missed.any() else 0.0
    return Summary(float(np.abs(p - t).mean()), float(1 - missed.mean()), overestimation, len(p))


def leave_one_group_out_adjustment(
    predicted: Sequence[float] | Array,
    true: Sequence[float] | Array,
    groups: Sequence[str],
    coverage: float,
    by: Literal["shift", "scale"] = "shift",
) -> Array:
    """Make estimates more careful, by as much as would have covered a share of the shifts of all other groups.

    Args:
        predicted: [S] errors.
        true: [S] errors.
        groups: [S] names, e.g. the dataset of each shift; two or more.
        coverage: share of the other groups' shifts to be covered, e.g. 0.99.
        by: "shift" adds a constant to the error, "scale" multiplies the accuracy by one.

    Returns:
        [S] predicted errors; those of a group never depend on its own truth.

    Raises:
        InputError: for one group, lengths that differ, or a coverage outside (0, 1].

    Source: Rosenfeld & Garg 2023, the strengthened baselines, as in its code.
    """
    p, t, names = np.asarray(predicted, np.float64), np.asarray(true, np.float64), np.asarray(groups)
    if not p.shape == t.shape == names.shape or p.ndim != 1:
        raise InputError(f"groups: {len(names)} names for {len(p)} predicted and {len(t)} true errors; make them equal")
    if not 0 < coverage <= 1:
        raise InputError(f"coverage: {coverage} is not between 0 and 1; give e.g. 0.99")
    if len(set(groups)) < 2:
        raise InputError("groups: are all the same; the adjustment is learnt on the other groups")
    adjusted = np.empty_like(p)
    for name in dict.fromkeys(groups):
        inside = names == name
        needed = math.ceil(coverage * int((~inside).sum()) - 1e-9)
        if by == "shift":
            gaps = np.sort((t - p)[~inside])
            adjusted[inside] = p[inside] + gaps[needed - 1]
        else:
            accuracy = np.maximum(1 - p[~inside], 1e-12)
            factors = np.sort((1 - t[~inside]) / accuracy)[::-1]
            adjusted[inside] = 1 - (1 - p[inside]) * factors[needed - 1]
    return np.clip(adjusted, 0, 1)
