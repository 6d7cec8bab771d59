"""Somebody outside who follows a training while it goes on, and may end it: what pruning needs of a training loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

MetricRow = tuple[int, str, str, str, float]
"""(step, environment, split, metric, value)"""


class Watch(Protocol):
    """Follows one trial's training. Both calls return at once: a training step never waits for an answer."""

    def report(self, step: int, rows: Sequence[MetricRow]) -> None:
        """Hear what an evaluation measured.

        Args:
            step: parameter updates done.
            rows: the evaluation's rows, all of this step.
        """

    def stopped(self) -> bool:
        """Whether the trial is to end now; asked at every step."""


class Stopped(Exception):  # noqa: N818 - not an error: the trial did what it was told
    """A trial was told to end before its budget was spent; `rows` is what it had measured until then."""

    def __init__(self, rows: Sequence[MetricRow]) -> None:
        super().__init__("told to stop")
        self.rows = list(rows)
