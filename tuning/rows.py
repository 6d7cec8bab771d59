"""Trials of Optuna's as rows of the table `suggestions`, and back."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from cluster.trial import canonical_json
from tuning.tables import SUGGESTIONS


def to_row(
    study: str, trial: FrozenTrial, distributions: str, objectives: Sequence[str], directions: Sequence[str]
) -> tuple[Any, ...]:
    """Make a row of a trial of Optuna's that has ended.

    Args:
        study: name.
        trial: with the user attributes trial_ids and, of one that failed, error.
        distributions: of its parameters, as JSON.
        objectives: names.
        directions: minimize or maximize, one an objective.
    """
    row = {
        "study": study,
        "number": trial.number,
        "state": trial.state.name.lower(),
        "parameters": canonical_json(trial.params),
        "distributions": distributions,
        "objectives": list(objectives),
        "directions": list(directions),
        "values": trial.values,
        "intermediate": [{"step": s, "value": v} for s, v in sorted(trial.intermediate_values.items())],
        "trial_ids": trial.user_attrs.get("trial_ids", []),
        "started_at": trial.datetime_start and trial.datetime_start.astimezone(dt.UTC),
        "ended_at": trial.datetime_complete and trial.datetime_complete.astimezone(dt.UTC),
        "error": trial.user_attrs.get("error"),
    }
    return tuple(row[name] for name in SUGGESTIONS.names)


def from_row(row: Mapping[str, Any]) -> FrozenTrial:
    """Build Optuna's trial from a row as a dictionary; its number is for the study to give."""
    distributions = {name: json_to_distribution(json.dumps(d)) for name, d in json.loads(row["distributions"]).items()}
    attributes: dict[str, Any] = {"trial_ids": row["trial_ids"]}
    if row["error"]:
        attributes["error"] = row["error"]
    trial = create_trial(
        state=TrialState[row["state"].upper()],
        values=row["values"],
        params=json.loads(row["parameters"]),
        distributions=distributions,
        user_attrs=attributes,
        intermediate_values={point["step"]: point["value"] for point in row["intermediate"] or []},
    )
    # As Optuna has it: local time, without a zone.
    trial.datetime_start = row["started_at"] and row["started_at"].astimezone().replace(tzinfo=None)
    trial.datetime_complete = row["ended_at"] and row["ended_at"].astimezone().replace(tzinfo=None)
    return trial
