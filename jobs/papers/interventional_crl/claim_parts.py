"""What the files of claims share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jobs.claims import Claim, Relation

PROTOTYPE = "ours, reference prototype"


def claim(
    name: str, reference: float, measured: float, source: str, relation: Relation = "equals", tolerance: float = 0.0
) -> Claim:
    """Make a claim."""
    return Claim(name, reference, measured, tolerance, source, relation)


def share(values: Sequence[bool]) -> float:
    """Share that is true; NaN of none."""
    return sum(values) / len(values) if values else math.nan


def difference(left: Sequence[float], right: Sequence[float]) -> float:
    """Difference of means; NaN where there are none."""
    if not left or not right:
        return math.nan
    return math.fsum(left) / len(left) - math.fsum(right) / len(right)
