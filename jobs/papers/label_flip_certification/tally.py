"""Curves and figures of the cells, gathered over the chunks of test points that a setting was computed in."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

from jobs.claims import Results
from jobs.papers.label_flip_certification.plans import Setting


class Tally:
    """Sums of the metric rows of all cells of a setting.

    Args:
        results: of any number of cells; those without a setting (see `Setting`) are left out.
    """

    def __init__(self, results: Results) -> None:
        self._sums: dict[tuple[Setting, str, str], dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for row in results.rows():
            if "data" in row:
                setting = Setting._make(row.get(name) for name in Setting._fields)
                self._sums[setting, row["environment"], row["metric"]][row["step"]] += row["value"]

    def total(self, metric: str, setting: Setting, q: float | None = None) -> float:
        """Sum a figure over the setting's cells; NaN if there is none."""
        return self._curve(metric, setting, q).get(0, math.nan)

    def totals(self, metric: str, settings: Iterable[tuple[Setting, float | None]]) -> float:
        """Sum a figure over settings and noise rates; NaN where one has none."""
        return math.fsum(self.total(metric, setting, q) for setting, q in settings)

    def points(self, setting: Setting) -> int:
        """Count the test points."""
        return int(self._curve("points", setting, None).get(0, 0))

    def accuracy(self, setting: Setting) -> float:
        """Share of test points predicted right by the rule itself, whatever is certified."""
        return self.total("right", setting) / (self.points(setting) or math.nan)

    def curve(self, metric: str, setting: Setting, q: float | None = None) -> tuple[list[int], list[float]]:
        """Numbers of flips, and the share of test points that are right and certified for them."""
        counts, points = self._curve(metric, setting, q), self.points(setting)
        steps = sorted(counts)
        return steps, [counts[r] / points for r in steps]

    def share(self, metric: str, setting: Setting, q: float | None, flips: int) -> float:
        """Share that is right and certified for so many flips, read at the first number on the curve from there on."""
        steps, shares = self.curve(metric, setting, q)
        if not steps:
            return math.nan
        return next((share for r, share in zip(steps, shares, strict=True) if r >= flips), 0.0)

    def median(self, metric: str, setting: Setting, q: float | None = None) -> float:
        """Median of the certified flips, wrong or abstained -1; above 400 flips to the curve's 2.5 % below."""
        counts, points = self._curve(metric, setting, q), self.points(setting)
        if not counts:
            return math.nan

        def ranked(rank: int) -> int:
            """The rank-th largest value."""
            return max((r for r, count in counts.items() if count >= rank), default=-1)

        return (ranked((points + 1) // 2) + ranked(points // 2 + 1)) / 2

    def first_below(self, metric: str, setting: Setting, share: float) -> int | None:
        """The fewest flips at which less than a share of the test points is left; None where there is no such number."""
        steps, shares = self.curve(metric, setting)
        return next((r for r, left in zip(steps, shares, strict=True) if left < share), None)

    def _curve(self, metric: str, setting: Setting, q: float | None) -> dict[int, float]:
        return self._sums.get((setting, "" if q is None else f"q={q:g}", metric), {})
