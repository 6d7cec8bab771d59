"""Feature tables: the common input of every method that works on representations, made by any encoder.

Columns: `features` (fixed-size list of float32), `label` (integers or strings), `environment` (strings or integers),
and optionally `split` ("in" or "out") and `logits`. Files: Parquet, Arrow IPC (file or stream), or npz.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from lightning_modules.data.environments import Dataset, Environment, check_dataset
from lightning_modules.errors import InputError

PARQUET, ARROW, NPZ = (".parquet", ".pq"), (".arrow", ".feather", ".ipc"), (".npz",)
"""Formats by their lower-case suffix."""

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
    table = _read(path, _REQUIRED)
    features, labels, classes, out = _rows(path, table)
    rooms, names = _codes(path, table, "environment")
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
    return _rows(path, _read(path, _ROWS))


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
    table = _read(path, ("features",), ("label", "environment", "logits"))
    if not len(table):
        raise InputError(f"{path}: has no rows; fill it")
    present = table.column_names
    labels, classes = _codes(path, table, "label") if "label" in present else (None, [])
    rooms: dict[str, np.ndarray] = {}
    if "environment" in present:
        codes, names = _codes(path, table, "environment")
        rooms = {name: np.flatnonzero(codes == code) for code, name in enumerate(names)}
    logits = _features(path, table["logits"], "logits") if "logits" in present else None
    with open(path, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    identity = f"{path.stem.replace('@', '_')}@{digest[:8]}"
    return FeatureRows(identity, _features(path, table["features"]), labels, tuple(classes), rooms, logits)


def read_columns(
    path: str | os.PathLike[str], features: Sequence[str], strings: Sequence[str] = (), optional: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Read columns of any name: those of features, and those of strings (integers become strings).

    Args:
        path: as for `load_table`.
        features: names of columns that must be there.
        strings: likewise.
        optional: names of columns of strings that need not be there.

    Returns:
        By name: features [n, d] float32, and strings [n].

    Raises:
        InputError: as `load_table`, for what is read.
    """
    path = Path(path)
    table = _read(path, (*features, *strings), optional)
    if not len(table):
        raise InputError(f"{path}: has no rows; fill it")
    arrays = {name: _features(path, table[name], name) for name in features}
    texts = {}
    for name in (*strings, *(name for name in optional if name in table.column_names)):
        codes, values = _codes(path, table, name)
        texts[name] = [values[code] for code in codes]
    return arrays, texts


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
                _select(path, file.schema_arrow.names, _ROWS)
                labels = file.read(columns=["label"])
            with open(path, "rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())[:200]})") from error
        if not len(labels):
            raise InputError(f"{path}: has no rows; fill it")
        _, classes = _codes(path, labels, "label")
        return cls(str(path), tuple(classes), f"{path.stem.replace('@', '_')}@{digest[:8]}")

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield features [n, d] float32 and labels [n] int64, a few thousand rows at a time, in the file's order."""
        path = Path(self.path)
        place = {name: code for code, name in enumerate(self.classes)}
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_STREAM_ROWS, columns=list(_ROWS)):
                table = pa.Table.from_batches([batch])
                codes, names = _codes(path, table, "label")
                yield _features(path, table["features"]), np.array([place[name] for name in names])[codes]


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
    suffix = _suffix(path)
    given = {"features": features, "label": labels, "environment": environments, "split": split, "logits": logits}
    arrays = {name: np.asarray(values) for name, values in given.items() if values is not None}
    for name, array in arrays.items():
        if array.dtype == object:  # such as a pandas column of strings; npz would store pickles
            arrays[name] = np.array(array.tolist())
    for name in {"features", "logits"} & arrays.keys():
        arrays[name] = arrays[name].astype(np.float32)
    table = _from_arrays(path, arrays)
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


def _bad(path: Path, column: str, what: str) -> InputError:
    return InputError(f"{path}: column {column!r}: {what}")


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in PARQUET + ARROW + NPZ:
        raise InputError(f"{path}: a feature table ends in .parquet, .arrow, .feather or .npz, not in {suffix!r}")
    return suffix


def _rows(path: Path, table: pa.Table) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray | None]:
    """Take features, labels, class names and, where there is a split, which rows are out."""
    if not len(table):
        raise InputError(f"{path}: has no rows; fill it")
    features = _features(path, table["features"])
    labels, classes = _codes(path, table, "label")
    if "split" not in table.column_names:
        return features, labels, classes, None
    codes, splits = _codes(path, table, "split")
    for code, split in enumerate(splits):
        if split not in ("in", "out"):
            raise _bad(path, "split", f"{split!r} at row {np.argmax(codes == code)} is neither 'in' nor 'out'")
    return features, labels, classes, np.array([split == "out" for split in splits])[codes]


def _read(path: Path, required: Sequence[str], optional: Sequence[str] = _OPTIONAL) -> pa.Table:
    """Read the required columns and the optional ones that are there, whatever the format."""
    suffix = _suffix(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if suffix in NPZ:
            return _from_arrays(path, _read_npz(path, required, optional))
        if suffix in PARQUET:
            with pq.ParquetFile(path) as file:
                return file.read(columns=_select(path, file.schema_arrow.names, required, optional))
        with pa.memory_map(str(path)) as source:
            try:
                table = pa.ipc.open_file(source).read_all()
            except pa.ArrowInvalid:  # not the file format: the stream format has no magic bytes to tell it by
                table = pa.ipc.open_stream(source).read_all()
        table = table.select(_select(path, table.column_names, required, optional))
        table.validate(full=True)  # unlike the other formats this one has no checks of its own, and bad offsets crash
        return table
    except InputError:
        raise
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        KeyError,
        EOFError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: cannot be read as {suffix[1:]} ({reason}); write it anew") from error


def _read_npz(path: Path, required: Sequence[str], optional: Sequence[str]) -> dict[str, np.ndarray]:
    file = np.load(path, allow_pickle=False)  # pickles run code
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise InputError(f"{path}: holds one array; write it with numpy.savez and the names {', '.join(required)}")
    with file:
        arrays = {}
        for name in _select(path, file.files, required, optional):
            try:
                arrays[name] = file[name]
            except ValueError as error:
                if "allow_pickle" not in str(error):
                    raise
                raise _bad(path, name, "holds Python objects; make its rows equally long and of one type") from error
        return arrays


def _select(
    path: Path, present: Sequence[str], required: Sequence[str], optional: Sequence[str] = _OPTIONAL
) -> list[str]:
    for name in required:
        if name not in present:
            raise InputError(f"{path}: column {name!r} is missing; it has {', '.join(map(repr, present)) or 'none'}")
    for name in (*required, *optional):
        if list(present).count(name) > 1:
            raise _bad(path, name, "stands there more than once; keep one")
    return [*required, *(name for name in optional if name in present)]


def _from_arrays(path: Path, arrays: dict[str, np.ndarray]) -> pa.Table:
    """Make a table of arrays that may come from anywhere."""
    columns: dict[str, pa.Array] = {}
    first = next(iter(arrays))
    for name, array in arrays.items():
        matrix = name == "logits" or name.endswith("features")
        if array.ndim != (2 if matrix else 1):
            expected = "[n, d]" if matrix else "[n]"
            raise _bad(path, name, f"has shape {list(array.shape)}, not {expected}; reshape it")
        if array.ndim == 2 and array.shape[1] == 0:
            raise _bad(path, name, "has no numbers in its rows")
        if len(array) != len(arrays[first]):
            raise _bad(path, name, f"has {len(array)} rows, {first!r} has {len(arrays[first])}")
        flat = pa.array(array.reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, array.shape[1]) if array.ndim == 2 else flat
    return pa.table(columns)


def _features(path: Path, column: pa.ChunkedArray, name: str = "features") -> np.ndarray:
    """Turn a list column into [n, d] float32."""
    kind = column.type
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise _bad(path, name, f"is {kind}; make it a fixed-size list of float32")
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    lengths = np.concatenate([chunk.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False) for chunk in chunks])
    width = int(lengths[0])
    if column.null_count:
        raise _bad(path, name, f"has {_nulls(column)}; drop those rows")
    if (lengths != width).any():
        row = int(np.argmax(lengths != width))
        raise _bad(path, name, f"row {row} has {lengths[row]} numbers, row 0 has {width}; make them equal")
    if width == 0:
        raise _bad(path, name, "has no numbers in its rows")
    features = np.empty((len(column), width), dtype=np.float32)
    start = 0
    for chunk in chunks:
        # A null inside a row turns into NaN; what is too large for float32 into infinity.
        with np.errstate(over="ignore"):
            numbers = chunk.flatten().to_numpy(zero_copy_only=False)
            features[start : start + len(chunk)] = numbers.reshape(len(chunk), width)
        start += len(chunk)
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        what = f"{bad.sum()} rows have NaN, null or infinite numbers, first row {bad.argmax()}"
        raise _bad(path, name, f"{what}; clean or drop them")
    return features


def _codes(path: Path, table: pa.Table, name: str) -> tuple[np.ndarray, list[str]]:
    """Number a column's distinct values in sorted order: codes [n] int64, and the values as strings."""
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)  # each chunk may bring its own dictionary
    kind = column.type
    strings = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not strings and (name == "split" or not pa.types.is_integer(kind)):
        raise _bad(path, name, f"is {kind}; make it {'' if name == 'split' else 'integers or '}strings")
    if column.null_count:
        raise _bad(path, name, f"has {_nulls(column)}; fill or drop those rows")
    encoded = column.combine_chunks().dictionary_encode()
    values = encoded.dictionary.to_pylist()
    order = sorted(range(len(values)), key=_sort_key(values))
    rank = np.empty(len(values), dtype=np.int64)
    rank[order] = np.arange(len(values))
    return rank[encoded.indices.to_numpy()], [str(values[i]) for i in order]


def _nulls(column: pa.ChunkedArray) -> str:
    return f"{column.null_count} nulls, first at row {np.argmax(column.is_null().to_numpy())}"


def _sort_key(values: list[Any]) -> Callable[[int], Any]:
    """Sort positions by value, as numbers where all values are numbers."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return lambda i: values[i]
    return (lambda i: (numbers[i], values[i])) if all(map(math.isfinite, numbers)) else (lambda i: values[i])
