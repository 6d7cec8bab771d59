"""The tables of certificates, one row an example, and how to read them."""

from __future__ import annotations

import pyarrow as pa

from cluster.schemas import table_schema
from cluster.store import Run

SMOOTHING, ADAPTIVE, IMPORTED = "certify/smoothing", "certify/smoothing-adaptive", "certify/imported"
RIDGE, PARTITION = "certify/ridge", "certify/partition"
METHODS = (SMOOTHING, ADAPTIVE, IMPORTED, RIDGE, PARTITION)
"""Methods of certification trials, each of which is one example under one setting."""

CERTIFICATES = table_schema(
    ("trial_id", pa.string()),
    ("idx", pa.int64()),  # position of the example in its part of the data
    ("label", pa.int64()),
    ("prediction", pa.int64()),  # -1: abstains
    ("radius", pa.float64()),  # l2, in the inputs' units; null where `skipped`
    ("p_lower", pa.float64()),
    ("n_used", pa.int64()),
    ("count", pa.int64()),
    ("correct", pa.bool_()),
    ("skipped", pa.bool_()),  # not certified, because the guess was not the label already
    ("seconds", pa.float64()),
    ("sigma", pa.float64()),
    ("method", pa.string()),  # smoothing | smoothing-adaptive | imported
    ("seed", pa.int64()),
    ("dataset", pa.string()),
    ("model", pa.string()),  # name@fingerprint
    ("n0", pa.int64()),
    ("n", pa.int64()),
    ("alpha", pa.float64()),
    ("noise", pa.string()),  # independent | shared
    ("precision", pa.string()),  # what f was computed in: the certificate is about that f
)

FLIPS = table_schema(
    ("trial_id", pa.string()),
    ("idx", pa.int64()),
    ("label", pa.int64()),
    ("prediction", pa.int64()),  # the method's own
    ("flips", pa.int64()),  # certified by the method: flips_np of the smoothed rule, votes of a partition; -1: abstains
    ("correct", pa.bool_()),
    ("abstain", pa.bool_()),
    ("log_wrong_prob", pa.float64()),  # of the smoothed rule, else null
    ("flips_kl", pa.int64()),
    ("flips_np", pa.int64()),
    ("flips_exact", pa.int64()),  # of plain ridge with the same lam, never below flips_np
    ("seconds", pa.float64()),
    ("method", pa.string()),  # smoothed ridge | partition | partition, white box
    ("q", pa.float64()),
    ("lam", pa.float64()),
    ("partitions", pa.int64()),
    ("features", pa.string()),
    ("dataset", pa.string()),
)

SCHEMAS = {"certificates": CERTIFICATES, "flip_certificates": FLIPS}


def read(run: Run, table: str) -> pa.Table:
    """Read "certificates" or "flip_certificates": one row for each completed trial, sorted by example."""
    return run.read_completed(table, SCHEMAS[table]).sort_by([("idx", "ascending"), ("trial_id", "ascending")])
