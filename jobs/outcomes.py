"""Rows of the tables `trials` and whatever trials measure, from their outcomes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cluster.plan import Outcome


def outcome_rows(outcomes: Iterable[Outcome], about: str) -> dict[str, list[Any]]:
    """Turn outcomes into rows by table.

    Args:
        outcomes: ends of trials.
        about: versions, as JSON.
    """
    rows: dict[str, list[Any]] = {"trials": []}
    for o in outcomes:
        t = o.trial
        rows["trials"].append(
            (t.trial_id, t.method, t.dataset, list(t.held_out), t.hyperparameters, t.seed, t.budget)
            + (o.status, o.error, o.attempts, o.node, o.device, o.started_at, o.seconds, about)
        )
        for table, found in o.tables.items():
            rows.setdefault(table, []).extend((t.trial_id, *row) for row in found)
    return rows
