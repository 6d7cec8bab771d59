"""The table of a study in its run: one row a suggestion that has ended, enough to build the Optuna study anew."""

from __future__ import annotations

import pyarrow as pa

from cluster.schemas import table_schema

SUGGESTIONS = table_schema(
    ("study", pa.string()),
    ("number", pa.int64()),  # Optuna's number of the trial within its study
    ("state", pa.string()),  # complete | pruned | fail, as Optuna calls them
    ("parameters", pa.string()),  # JSON, keys sorted: what was suggested; conditional ones may be missing
    ("distributions", pa.string()),  # JSON: by parameter, Optuna's JSON of its distribution
    ("objectives", pa.list_(pa.string())),
    ("directions", pa.list_(pa.string())),  # minimize | maximize, one an objective
    ("values", pa.list_(pa.float64())),  # one an objective; of a pruned one its last intermediate value; null if none
    ("intermediate", pa.list_(pa.struct([("step", pa.int64()), ("value", pa.float64())]))),
    ("trial_ids", pa.list_(pa.string())),  # the trials that were run for it, a replicate each
    ("started_at", pa.timestamp("us", tz="UTC")),
    ("ended_at", pa.timestamp("us", tz="UTC")),
    ("error", pa.string()),
)
