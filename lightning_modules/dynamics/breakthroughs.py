"""When curves break: the sharpest bend of a loss, and clusters whose bend comes when the mean loss is flat already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from torch import Tensor

from lightning_modules.dynamics.clusters import Cluster
from lightning_modules.dynamics.polca import Projected
from lightning_modules.errors import InputError

Array = np.ndarray

BREAKTHROUGHS = pa.schema(
    [
        ("direction", pa.int32()),
        ("cluster", pa.int32()),
        ("example", pa.int32()),
        ("break_step", pa.int64()),
        ("change", pa.float32()),
    ],
    metadata={"version": "1"},
)
"""A row for every member of every cluster; `change` is what the direction contributed to its loss."""


def breakthrough(curves: Tensor | Array, delta: int, sign: int = 1) -> Array:
    """Where each curve bends most: argmax over t of sign ([f(t + delta) - f(t)] - [f(t) - f(t - delta)]).

    Args:
        curves: [..., T].
        delta: in checkpoints.
        sign: 1, the paper's formula, finds the END of a loss's drop; -1 its onset.

    Returns:
        Numbers of checkpoints [...], from delta to T - 1 - delta.

    Raises:
        InputError: delta below 1 or too long for the curves, or another sign.

    Source: arXiv 2506.15872, section 4.
    """
    rows = np.asarray(curves, np.float64)
    if sign not in (1, -1):
        raise InputError(f"sign: is {sign}; give 1 for the end of a drop, -1 for its onset")
    if not 1 <= delta <= (rows.shape[-1] - 1) // 2:
        raise InputError(f"delta: is {delta} of {rows.shape[-1]} checkpoints; give 1 to {(rows.shape[-1] - 1) // 2}")
    middle = rows[..., delta:-delta]
    bends = rows[..., 2 * delta :] + rows[..., : -2 * delta] - 2 * middle
    found: Array = np.argmax(sign * bends, -1) + delta
    return found


def break_steps(projected: Projected, cluster: Cluster, delta: int, sign: int = 1) -> Array:
    """Training steps [members] at which a cluster's curves break.

    Args:
        projected: what was clustered.
        cluster: of it.
        delta: in checkpoints.
        sign: as for `breakthrough`.
    """
    curves = projected.curves(cluster.direction).cpu().numpy()[cluster.members]
    found: Array = np.asarray(projected.steps)[breakthrough(curves, delta, sign)]
    return found


def hidden_fraction(projected: Projected, clusters: Sequence[Cluster], tau: float, delta: int, sign: int = 1) -> float:
    """Share of clusters whose members break after step tau on average; 0 where there are none.

    Args:
        projected: what was clustered.
        clusters: of it.
        tau: the step at which the mean loss has become flat.
        delta: in checkpoints.
        sign: as for `breakthrough`.
    """
    late = [float(break_steps(projected, cluster, delta, sign).mean()) > tau for cluster in clusters]
    return sum(late) / len(late) if late else 0.0


def breakthrough_table(projected: Projected, clusters: Sequence[Cluster], delta: int, sign: int = 1) -> pa.Table:
    """Every member of every cluster as a row of `BREAKTHROUGHS`.

    Args:
        projected: what was clustered.
        clusters: of it, numbered in their order.
        delta: in checkpoints.
        sign: as for `breakthrough`.
    """
    final = projected.values.sum(0).float().cpu().numpy()
    parts = []
    for number, cluster in enumerate(clusters):
        count = len(cluster.members)
        columns = [
            np.full(count, cluster.direction, np.int32),
            np.full(count, number, np.int32),
            cluster.members.astype(np.int32),
            break_steps(projected, cluster, delta, sign).astype(np.int64),
            final[cluster.direction][cluster.members],
        ]
        parts.append(pa.Table.from_arrays([pa.array(column) for column in columns], schema=BREAKTHROUGHS))
    return pa.concat_tables(parts) if parts else BREAKTHROUGHS.empty_table()
