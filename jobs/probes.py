"""What probes of a training found, as tables of its run: figures of a step, and figures of an example at a step.

A training that goes on from a checkpoint measures again what came after it, and finds the same: readers count a row once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from cluster.errors import InputError
from cluster.schemas import table_schema
from cluster.store import Run

_NAMES = pa.dictionary(pa.int32(), pa.string())
"""Names that repeat a million times: one number a row."""

PROBE_SERIES = table_schema(
    ("trial_id", pa.string()),
    ("step", pa.int64()),  # parameter updates done
    ("probe", pa.string()),
    ("quantity", pa.string()),
    ("item", pa.string()),  # which eigenvector, tensor or group; "" where there is one
    ("value", pa.float64()),
)

PROBE_EXAMPLES = table_schema(
    ("trial_id", _NAMES),
    ("step", pa.int64()),
    ("probe", _NAMES),
    ("quantity", _NAMES),
    ("item", pa.int32()),  # which direction; 0 where there is one
    ("example", pa.int32()),  # its number in the training data's own order
    ("value", pa.float32()),
)

SCHEMAS = {"probe_series": PROBE_SERIES, "probe_examples": PROBE_EXAMPLES}


def check_probes(words: Sequence[str], method: str | None) -> list[str]:
    """Refuse probes that do not exist, or that a method on environments cannot have; returns their names.

    Args:
        words: names with their options.
        method: what is trained, unless it is a LightningModule.

    Raises:
        InputError: names the probe and the mend.
    """
    from lightning_modules.dynamics.catalog import make_probe

    if method is not None:
        raise InputError(f"probe: {method} has no loss of each example; probes measure LightningModules (module:Class)")
    names = [make_probe(one).name for one in words]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"probe: {name} is asked for twice; give it once")
    return names


def probe_tables(
    trial_id: str,
    step: int,
    probe: str,
    series: Sequence[tuple[str, str, float]],
    examples: Sequence[tuple[str, int, Any, Any]],
) -> dict[str, Any]:
    """What a probe found at a step, as rows for `Store.append`."""
    found: dict[str, Any] = {}
    if series:
        found["probe_series"] = [(trial_id, step, probe, *row) for row in series]
    batches = [
        _batch(trial_id, step, probe, quantity, item, numbers, values) for quantity, item, numbers, values in examples
    ]
    if batches:
        found["probe_examples"] = pa.Table.from_batches(batches)
    return found


def _batch(trial_id: str, step: int, probe: str, quantity: str, item: int, numbers: Any, values: Any) -> pa.RecordBatch:
    count = len(values)
    zeros = pa.repeat(pa.scalar(0, pa.int32()), count)
    columns = [
        pa.DictionaryArray.from_arrays(zeros, [trial_id]),
        pa.repeat(pa.scalar(step, pa.int64()), count),
        pa.DictionaryArray.from_arrays(zeros, [probe]),
        pa.DictionaryArray.from_arrays(zeros, [quantity]),
        pa.repeat(pa.scalar(item, pa.int32()), count),
        pa.array(numbers, pa.int32()),
        pa.array(values, pa.float32()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PROBE_EXAMPLES)


def read_series(run: Run) -> list[dict[str, Any]]:
    """A run's rows of `probe_series`, each once, by step."""
    rows = run.read("probe_series", PROBE_SERIES).to_pylist()
    found = {tuple(row[key] for key in ("trial_id", "step", "probe", "quantity", "item")): row for row in rows}
    return sorted(found.values(), key=lambda row: row["step"])


def costs(series: Sequence[dict[str, Any]], trial_id: str) -> dict[str, tuple[float, float]]:
    """By probe of a training: seconds, and their share of the training's time, of its last launch."""
    found: dict[str, dict[str, float]] = {}
    for row in series:
        if row["trial_id"] == trial_id and row["quantity"].startswith("cost_"):
            found.setdefault(row["probe"], {})[row["quantity"]] = row["value"]
    return {probe: (values["cost_seconds"], values["cost_share"]) for probe, values in sorted(found.items())}
