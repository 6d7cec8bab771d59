"""Feature tables: the common input of every method that works on representations, made by any encoder.

Columns: `features` (fixed-size list of float32), `label` (integers or strings), `environment` (strings or integers),
and optionally `split` ("in" or "out") and `logits`. Files: Parquet, Arrow IPC (file or stream), or npz.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from lightning_modules.data.columns import (
    ARROW,
    PARQUET,
    bad_column,
    from_arrays,
    read_arrow,
    select_columns,
    table_suffix,
    to_codes,
    to_features,
)
from lightning_modules.data.environments import Dataset, Environment, check_dataset
from lightning_modules.errors import InputError

_REQUIRED, _OPTIONAL = ("features", "label", "environment"), ("split",)
_ROWS = ("features", "label")

_STREAM_ROWS = 8192


def load_table(path: str | os.PathLike[str]) -> Dataset:
    """Load a feature table.

    Classes are the sorted distinct labels and environments the sorted distinct names; where all of them are numbers,
    written as such or as strings, they sort as numbers. Rows keep their order within an environment.

    Args:
        path: .parquet, .arrow, .feather (file or stream format) or .npz with the columns above as arrays. `logits` is
            not read.

    Returns:
        Inputs [n, d] float32. The identity is the file's stem, "@" and a fingerprint of the content; the same rows in
        another format have the same fingerprint.

    Raises:
        InputError: naming the file, the column and the first bad row, for a file that cannot be read, a missing
            column, a column of another type, nulls, NaN or infinite or ragged features, a split other than "in" and
            "out", fewer than two environments, or an environment without examples of a class.
    """
    path = Path(path)
    table = read_arrow(path, _REQUIRED, _OPTIONAL)
    features, labels, classes, out = _rows(path, table)
    rooms, names = to_codes(path, table, "environment")
    digest = hashlib.sha256(json.dumps([features.shape, classes, names, out is not None]).encode())
    for array in (features, labels, rooms, *([] if out is None else [out])):
        digest.update(np.ascontiguousarray(array).data)
    order = np.argsort(rooms, kind="stable")
    environments = tuple(
        Environment(name, features[rows], labels[rows], None if out is None else out[rows])
        for name, rows in zip(names, np.split(order, np.cumsum(np.bincount(rooms))[:-1]), strict=True)
    )
    identity = f"{path.stem.replace('@', '_')}@{digest.hexdigest()[:8]}"
    return check_dataset(Dataset(identity, environments, tuple(classes), "linear", 100))


def load_rows(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray | None]:
    """Load a feature table whatever its environments: the rows of all together, in the file's order.

    Args:
        path: as for `load_table`; the column `environment` is not read and may be missing, and a class needs no
            example in any part.

    Returns:
        Features [n, d] float32, labels [n] int64, class names (the sorted distinct labels of the whole file), and
        [n] bool, True where `split` is "out", or None without that column.

    Raises:
        InputError: as `load_table`, but for what that says of environments.
    """
    path = Path(path)
    return _rows(path, read_arrow(path, _ROWS, _OPTIONAL))


@dataclass(frozen=True)
class FeatureRows:
    """The rows of a feature table, whichever of its optional columns there are.

    Args:
        identity: the file's stem, "@" and a fingerprint of its bytes.
        features: [n, d] float32.
        labels: [n] indices into `classes`; None without labels.
        classes: names of the distinct labels, sorted.
        environments: by name, its rows; empty without that column.
        logits: [n, C] float32, as they stand there; None without that column.
    """

    identity: str
    features: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    environments: dict[str, np.ndarray]
    logits: np.ndarray | None


def load_feature_rows(path: str | os.PathLike[str]) -> FeatureRows:
    """Load a feature table whose rows need no label: only `features` must be there.

    Args:
        path: as for `load_table`.

    Raises:
        InputError: as `load_table`, for what is there.
    """
    path = Path(path)
    table = read_arrow(path, ("features",), ("label", "environment", "logits"))
    if not len(table):
        raise InputError(f"{path}: has no rows; fill it")
    present = table.column_names
    labels, classes = to_codes(path, table, "label") if "label" in present else (None, [])
    rooms: dict[str, np.ndarray] = {}
    if "environment" in present:
        codes, names = to_codes(path, table, "environment")
        rooms = {name: np.flatnonzero(codes == code) for code, name in enumerate(names)}
    logits = to_features(path, table["logits"], "logits") if "logits" in present else None
    with open(path, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    identity = f"{path.stem.replace('@', '_')}@{digest[:8]}"
    return FeatureRows(identity, to_features(path, table["features"]), labels, tuple(classes), rooms, logits)


@dataclass(frozen=True)
class TableStream:
    """The rows of a Parquet feature table, read piece by piece and as often as wanted: for tables larger than memory.

    Args:
        path: of the file.
        classes: class names, in label order.
        identity: the file's stem, "@" and a fingerprint of its bytes.
    """

    path: str
    classes: tuple[str, ...]
    identity: str

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TableStream:
        """Read the labels and fingerprint the file; the features stay where they are.

        Raises:
            InputError: naming the file and the column, for a file that is no Parquet, a missing column, or bad labels.
        """
        path = Path(path)
        try:
            with pq.ParquetFile(path) as file:
                select_columns(path, file.schema_arrow.names, _ROWS, _OPTIONAL)
                labels = file.read(columns=["label"])
            with open(path, "rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())[:200]})") from error
        if not len(labels):
            raise InputError(f"{path}: has no rows; fill it")
        _, classes = to_codes(path, labels, "label")
        return cls(str(path), tuple(classes), f"{path.stem.replace('@', '_')}@{digest[:8]}")

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield features [n, d] float32 and labels [n] int64, a few thousand rows at a time, in the file's order."""
        path = Path(self.path)
        place = {name: code for code, name in enumerate(self.classes)}
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_STREAM_ROWS, columns=list(_ROWS)):
                table = pa.Table.from_batches([batch])
                codes, names = to_codes(path, table, "label")
                yield to_features(path, table["features"]), np.array([place[name] for name in names])[codes]


def write_table(
    path: str | os.PathLike[str],
    features: np.ndarray,
    labels: np.ndarray | Sequence[int | str],
    environments: np.ndarray | Sequence[int | str],
    split: np.ndarray | Sequence[str] | None = None,
    logits: np.ndarray | None = None,
) -> None:
    """Write a feature table that `load_table` and any reader of Parquet, Arrow or npz can read.

    The file appears whole or not at all.

    Args:
        path: its suffix chooses the format: .parquet, .arrow, .feather or .npz.
        features: [n, d], stored as float32.
        labels: [n] integers or strings.
        environments: [n] strings or integers.
        split: [n] "in" or "out".
        logits: [n, C], stored as float32.

    Raises:
        InputError: an unknown suffix, or arrays that do not fit each other.
    """
    path = Path(path)
    suffix = table_suffix(path)
    given = {"features": features, "label": labels, "environment": environments, "split": split, "logits": logits}
    arrays = {name: np.asarray(values) for name, values in given.items() if values is not None}
    for name, array in arrays.items():
        if array.dtype == object:  # such as a pandas column of strings; npz would store pickles
            arrays[name] = np.array(array.tolist())
    for name in {"features", "logits"} & arrays.keys():
        arrays[name] = arrays[name].astype(np.float32)
    table = from_arrays(path, arrays)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(unfinished, "wb") as sink:
            if suffix in PARQUET:
                pq.write_table(table, sink, compression="zstd")
            elif suffix in ARROW:
                with pa.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table)
            else:
                np.savez(sink, **arrays)  # type: ignore[arg-type]  # its stub takes the names for `allow_pickle`
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _rows(path: Path, table: pa.Table) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray | None]:
    """Take features, labels, class names and, where there is a split, which rows are out."""
    if not len(table):
        raise InputError(f"{path}: has no rows; fill it")
    features = to_features(path, table["features"])
    labels, classes = to_codes(path, table, "label")
    if "split" not in table.column_names:
        return features, labels, classes, None
    codes, splits = to_codes(path, table, "split")
    for code, split in enumerate(splits):
        if split not in ("in", "out"):
            raise bad_column(path, "split", f"{split!r} at row {np.argmax(codes == code)} is neither 'in' nor 'out'")
    return features, labels, classes, np.array([split == "out" for split in splits])[codes]
