"""Cells of a paper run at once in the test's own process, as the results that claims are made from."""

import pyarrow as pa

from cluster.schemas import METRICS
from jobs.claims import Results


def results_of(trials, run):
    """Run trials; `run` maps one to rows (step, environment, split, metric, value)."""
    rows = [(t.trial_id, *row) for t in trials for row in run(t)]
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), METRICS.types, strict=True)]
    done = sorted({row[0] for row in rows})
    table = pa.table({"trial_id": done, "status": ["completed"] * len(done)})
    return Results(table, pa.Table.from_arrays(columns, schema=METRICS), trials)
