"""A person's own data: a table with columns for actions, features and outcome, and a table of actions to predict for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from lightning_modules.causal.rep4ex.checks import Array
from lightning_modules.causal.rep4ex.extrapolation import CoverageWarning, InterventionExtrapolator
from lightning_modules.data.equal_images import read_equal_images
from lightning_modules.errors import InputError


def read_columns(path: str | os.PathLike[str], columns: str | Sequence[str]) -> tuple[Array, list[str]]:
    """Read columns of a .csv, .parquet or .arrow table: numbers, or paths of images.

    Args:
        path: of the table.
        columns: names, or one string: a name, names with commas between, or a prefix with * behind ("x*": x0, x1, ... in the
            table's order). A column of lists is as many columns as its lists are long, one of image paths (from the table's
            folder, or absolute) as many as the images have pixels, RGB.

    Returns:
        Numbers [n, width] float64 (uint8 where all are pixels), and the names of the columns.

    Raises:
        InputError: the file or a column is not there, or it holds anything but finite numbers or images of one size.
    """
    path = Path(path)
    table = _table(path)
    wanted = [word.strip() for word in columns.split(",")] if isinstance(columns, str) else list(columns)
    names: list[str] = []
    for word in wanted:
        matching = [n for n in table.column_names if n.startswith(word[:-1])] if word.endswith("*") else [word]
        if not matching or matching[0] not in table.column_names:
            raise InputError(f"{path}: has no column {word!r}; it has {', '.join(table.column_names)}")
        names += matching
    blocks = [_numbers(path, name, table[name]) for name in names]
    labels = [
        label
        for name, block in zip(names, blocks, strict=True)
        for label in ([name] if block.shape[1] == 1 else [f"{name}_{i}" for i in range(block.shape[1])])
    ]
    return np.concatenate(blocks, 1), labels


def extrapolate_table(
    observations: str | os.PathLike[str],
    targets: str | os.PathLike[str],
    a: str | Sequence[str] = "a*",
    x: str | Sequence[str] = "x*",
    y: str = "y",
    extrapolator: InterventionExtrapolator | None = None,
) -> pa.Table:
    """Fit on a table of observations and predict for a table of actions.

    Args:
        observations: path of the table with actions, features and outcome.
        targets: path of the table with actions a*, under the same names.
        a: columns of actions (see `read_columns`).
        x: columns of features.
        y: column of the outcome.
        extrapolator: not fitted; None: as many latents as there are actions.

    Returns:
        The columns of `a`, then `prediction` (of E[Y | do(A = a*)]), `outside` (share of V that leaves the training latents' box)
        and `uncovered` (bool: that share is above a half, and the prediction a guess).

    Raises:
        InputError: as `read_columns` and `InterventionExtrapolator.fit`.
    """
    actions, names = read_columns(observations, a)
    features, _ = read_columns(observations, x)
    outcomes, _ = read_columns(observations, y)
    wanted, _ = read_columns(targets, names if isinstance(a, str) and "*" in a and not _lists(targets, a) else a)
    extrapolator = extrapolator or InterventionExtrapolator(dim_z=actions.shape[1])
    extrapolator.fit(features, actions, outcomes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)  # it stands in the table
        prediction = extrapolator.predict_do(wanted)
    columns = {name: wanted[:, number] for number, name in enumerate(names)}
    columns |= {"prediction": prediction, "outside": extrapolator.control.outside(wanted)}
    return pa.table({**columns, "uncovered": extrapolator.uncovered(wanted)})


def _lists(path: str | os.PathLike[str], pattern: str) -> bool:
    """Whether a table's columns of a pattern are lists."""
    schema = _table(Path(path)).schema
    return any(f.name.startswith(pattern.rstrip("*")) and pa.types.is_nested(f.type) for f in schema)


def _table(path: Path) -> pa.Table:
    readers = {".csv": pyarrow.csv.read_csv, ".parquet": pq.read_table, ".pq": pq.read_table, ".arrow": _read_arrow}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: is no .csv, .parquet or .arrow table; convert it")
    try:
        return readers[path.suffix.lower()](str(path))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}); give a table") from error


def _read_arrow(path: str) -> pa.Table:
    with pa.memory_map(path) as source:
        return pa.ipc.open_file(source).read_all()


def _numbers(path: Path, name: str, column: pa.ChunkedArray) -> Array:
    """[n, width] of a column of numbers, of lists of numbers or of image paths."""
    if column.null_count:
        raise InputError(f"{path}: column {name} has {column.null_count} empty cells; fill or drop these rows")
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            return read_equal_images([path.parent / file for file in column.to_pylist()])
        except InputError as error:
            raise InputError(f"{path}: column {name}: {error}") from None
    try:
        if pa.types.is_nested(column.type):
            found = np.array(column.to_pylist(), np.float64)
        else:
            found = column.to_numpy().astype(np.float64)[:, None]
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: column {name} is {column.type}, no numbers of one width; give numbers") from error
    if found.ndim != 2 or not np.isfinite(found).all():
        raise InputError(f"{path}: column {name} has NaN or infinite numbers, or lists in lists; drop these rows")
    return found
