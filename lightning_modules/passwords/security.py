"""Leaks until a response is determined: exactly, by proof, or counted over a person's own sites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_modules.passwords.challenges import Challenge
from lightning_modules.passwords.pairs import Pair
from lightning_modules.passwords.quality import KeyCurve
from lightning_modules.passwords.solving import ConstraintAttack


@dataclass(frozen=True)
class Determined:
    """When a response became determined.

    Args:
        pairs: the smallest number of pairs from which it is proven; infinite if it is not with all of them.
        possible_before: the largest number of pairs for which another response is proven possible; -1 if it never is.
    """

    pairs: float
    possible_before: int

    @property
    def exact(self) -> bool:
        """Whether no question was left open by the solver's limit."""
        return math.isinf(self.pairs) or self.pairs == self.possible_before + 1


def pairs_until_determined(
    attack: ConstraintAttack, pairs: Sequence[Pair], challenge: Challenge, response: str
) -> Determined:
    """Find from how many pairs on every consistent key gives this response; more pairs leave fewer keys, so by bisection.

    Args:
        attack: the solver and its limit of one question.
        pairs: leaked pairs in order.
        challenge: what is asked for.
        response: the key's response to it.
    """
    open_at, proven_at = -1, math.inf
    low, high = 0, len(pairs)
    while low <= high:
        middle = (low + high) // 2
        known = attack.determined(pairs[:middle], challenge, response)
        if known:
            proven_at, high = float(middle), middle - 1
        else:
            # What the limit leaves open is not proven; the search goes on above it.
            open_at, low = (middle if known is False else open_at), middle + 1
    return Determined(proven_at, open_at)


@dataclass(frozen=True)
class SiteRisk:
    """A site over several keys and orders of leaks.

    Args:
        site: its challenge.
        known: share of the orders in which its response was known before it leaked itself.
        leaks: median number of other leaks until it was, over those orders; NaN without any.
    """

    site: Challenge
    known: float
    leaks: float


def site_risks(curves: Sequence[KeyCurve]) -> list[SiteRisk]:
    """Say of every site how many others leak until its response is known; `curves` are of one `SiteSource`, a point a leak."""
    risks = []
    for number, site in enumerate(curves[0].tests):
        first = []
        for curve in curves:
            hit = (curve.right[:, number] & curve.asked[:, number]).nonzero()[0]
            first.append(float(curve.pairs[hit[0]]) if len(hit) else math.nan)
        kept = [value for value in first if not math.isnan(value)]
        risks.append(SiteRisk(site, len(kept) / len(first), float(np.median(kept)) if kept else math.nan))
    return risks
