"""The tables of a run, declared once. A job that stores something per example declares its schema beside the job."""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 1
"""Raised when a column changes its meaning or type. A new nullable column is not a new version: readers unify."""

_METADATA = {"shiftlab_schema": str(SCHEMA_VERSION)}


def table_schema(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    """Build a table's schema with the schema version in its metadata."""
    return pa.schema([pa.field(name, kind) for name, kind in fields], metadata=_METADATA)


TRIALS = table_schema(
    ("trial_id", pa.string()),
    ("method", pa.string()),
    ("dataset", pa.string()),
    ("held_out", pa.list_(pa.string())),
    ("hyperparameters", pa.string()),  # JSON, keys sorted
    ("seed", pa.int64()),
    ("budget", pa.string()),  # JSON, keys sorted
    ("status", pa.string()),  # completed | failed | pruned
    ("error", pa.string()),
    ("attempts", pa.int64()),
    ("node", pa.string()),
    ("device", pa.string()),
    ("started_at", pa.timestamp("us", tz="UTC")),
    ("seconds", pa.float64()),
    ("versions", pa.string()),  # JSON, keys sorted
)

METRICS = table_schema(
    ("trial_id", pa.string()),
    ("step", pa.int64()),  # parameter updates done
    ("environment", pa.string()),
    ("split", pa.string()),  # in | out | test
    ("metric", pa.string()),
    ("value", pa.float64()),
)

CLAIMS = table_schema(
    ("paper", pa.string()),
    ("claim", pa.string()),
    ("reference", pa.float64()),
    ("measured", pa.float64()),
    ("tolerance", pa.float64()),
    ("holds", pa.bool_()),
    ("source", pa.string()),
    ("relation", pa.string()),  # measured against reference: equals | at least | at most
    ("scale", pa.string()),
    ("measured_at", pa.timestamp("us", tz="UTC")),  # of several rows for one claim the latest counts
    ("stated", pa.string()),  # what the paper states, where something smaller is measured; else null
)

EVENTS = table_schema(
    ("trial_id", pa.string()),  # null where it happened to no trial
    ("at", pa.timestamp("us", tz="UTC")),
    ("kind", pa.string()),  # worker_lost, node_lost, resized, corrupted, ...
    ("step", pa.int64()),
    ("node", pa.string()),
    ("detail", pa.string()),
)

# What a training says of itself while it goes on; of several rows for a step the latest counts.
TRAINING = table_schema(
    ("trial_id", pa.string()),
    ("at", pa.timestamp("us", tz="UTC")),
    ("step", pa.int64()),
    ("workers", pa.int64()),
    ("metric", pa.string()),
    ("value", pa.float64()),
)

TABLES: dict[str, pa.Schema] = {
    "trials": TRIALS,
    "metrics": METRICS,
    "claims": CLAIMS,
    "events": EVENTS,
    "training": TRAINING,
}
