"""The store: 100,000 metric rows written trial by trial and read back as one table, beside Parquet and JSON lines."""

from __future__ import annotations

import datetime as dt
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python benchmarks/store.py` has only this folder

from benchmarks.harness import Figure, alternate, quick_asked, ratio, scratch_folder, show
from cluster.schemas import METRICS
from cluster.store import Run, Store
from cluster.trial import Trial

TRIALS = 1_000
STEPS = 10
ENVIRONMENTS = ("+90%", "+80%", "-90%", "+70%", "-70%")
SPLITS = ("in", "out")

Trials = list[tuple[tuple[Any, ...], list[tuple[Any, ...]]]]
"""Of each trial its row for `trials`, and its rows for `metrics`."""


def make_trials() -> Trials:
    """Make the rows of the trials: one for `trials`, a hundred for `metrics`."""
    made: Trials = []
    for number in range(TRIALS):
        t = Trial.create("ERM", "ColoredMNIST", ("+90%",), {"lr": 10 ** -(number / TRIALS)}, number, {"steps": 1000})
        started = dt.datetime.fromtimestamp(1_700_000_000 + number, dt.UTC)
        identity = (t.trial_id, t.method, t.dataset, list(t.held_out), t.hyperparameters, t.seed, t.budget)
        row = (*identity, "completed", None, 1, "node", "cpu", started, 1.5, "{}")
        metrics = [
            (t.trial_id, 100 * step, environment, split, "accuracy", (number + step) / (TRIALS + STEPS))
            for step in range(STEPS)
            for environment in ENVIRONMENTS
            for split in SPLITS
        ]
        made.append((row, metrics))
    return made


def store(folder: str, trials: Trials) -> pa.Table:
    """Append every trial to a run as a sweep does, seal it and read its metrics."""
    with Store(folder) as opened:
        for row, metrics in trials:
            opened.append({"metrics": metrics, "trials": [row]})
    return Run(folder).read("metrics")


def parquet(folder: str, trials: Trials) -> pa.Table:
    """Write one Parquet file with a row group a trial; nothing can be read before it is closed."""
    with pq.ParquetWriter(f"{folder}.parquet", METRICS, compression="zstd") as writer:
        for _, metrics in trials:
            columns = zip(*metrics, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, METRICS, strict=True)]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=METRICS))
    return pq.read_table(f"{folder}.parquet")


def json_lines(folder: str, trials: Trials) -> pa.Table:
    """Write one file with a JSON object a row, flushed after each trial, and read it with Arrow's own parser."""
    with open(f"{folder}.jsonl", "w") as file:
        for _, metrics in trials:
            for row in metrics:
                file.write(json.dumps(dict(zip(METRICS.names, row, strict=True))) + "\n")
            file.flush()
    return pyarrow.json.read_json(f"{folder}.jsonl")


def main() -> int:
    quick = quick_asked(__doc__)
    trials = make_trials()
    rows = sum(len(metrics) for _, metrics in trials)
    total = sum(row[-1] for _, metrics in trials for row in metrics)
    runs = 0

    def rate(way: Callable[[str, Trials], pa.Table]) -> float:
        """Rows per second, written and read."""
        nonlocal runs
        runs += 1
        began = time.perf_counter()
        table = way(f"{folder}/{runs}", trials)
        took = time.perf_counter() - began
        if table.num_rows != rows or abs(sum(table["value"].to_pylist()) - total) > 1e-6:
            raise RuntimeError(f"{way.__name__}: {table.num_rows} of {rows} rows came back, or other values")
        return rows / took

    measures = {way.__name__: partial(rate, way) for way in (store, parquet, json_lines)}
    with scratch_folder() as folder:
        taken = alternate(measures, 2 if quick else 7)
    seconds = rows / statistics.median(taken["store"])
    figures = [
        Figure("store_100k_metric_rows", seconds, "s", 5, seconds, at_most=True),
        ratio("store_vs_parquet_row_groups", taken["store"], taken["parquet"], None),
        ratio("store_vs_json_lines", taken["store"], taken["json_lines"], None),
    ]
    notes = [
        f"{rows:,} metric rows of {TRIALS:,} trials, written trial by trial and read back as one table; ratios are of rows/s",
        "ours also writes a row of `trials` each, keeps each trial if the process dies, and is readable while it grows",
        "Parquet: one file, a row group a trial, readable only once closed; JSON lines: flushed a trial, read by pyarrow",
    ]
    show("store", figures, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
