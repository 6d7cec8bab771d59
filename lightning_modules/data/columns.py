"""Columns of a table in any format: Parquet, Arrow IPC (file or stream) or npz, checked, as arrays."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from lightning_modules.errors import InputError

PARQUET, ARROW, NPZ = (".parquet", ".pq"), (".arrow", ".feather", ".ipc"), (".npz",)
"""Formats by their lower-case suffix."""


def read_columns(
    path: str | os.PathLike[str], features: Sequence[str], strings: Sequence[str] = (), optional: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Read columns of any name: those of features, and those of strings (integers become strings).

    Args:
        path: .parquet, .arrow, .feather (file or stream format) or .npz.
        features: names of columns that must be there.
        strings: likewise.
        optional: names of columns of strings that need not be there.

    Returns:
        By name: features [n, d] float32, and strings [n].

    Raises:
        InputError: as `load_table` in `tables`, for what is read.
    """
    path = Path(path)
    table = read_arrow(path, (*features, *strings), optional)
    if not len(table):
        raise InputError(f"{path}: has no rows; fill it")
    arrays = {name: to_features(path, table[name], name) for name in features}
    texts = {}
    for name in (*strings, *(name for name in optional if name in table.column_names)):
        codes, values = to_codes(path, table, name)
        texts[name] = [values[code] for code in codes]
    return arrays, texts


def bad_column(path: Path, column: str, what: str) -> InputError:
    """The error of a column."""
    return InputError(f"{path}: column {column!r}: {what}")


def table_suffix(path: Path) -> str:
    """Return a table's lower-case suffix, or raise InputError if it is of no format."""
    suffix = path.suffix.lower()
    if suffix not in PARQUET + ARROW + NPZ:
        raise InputError(f"{path}: a feature table ends in .parquet, .arrow, .feather or .npz, not in {suffix!r}")
    return suffix


def read_arrow(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    """Read the required columns and the optional ones that are there, whatever the format."""
    suffix = table_suffix(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if suffix in NPZ:
            return from_arrays(path, _read_npz(path, required, optional))
        if suffix in PARQUET:
            with pq.ParquetFile(path) as file:
                return file.read(columns=select_columns(path, file.schema_arrow.names, required, optional))
        with pa.memory_map(str(path)) as source:
            try:
                table = pa.ipc.open_file(source).read_all()
            except pa.ArrowInvalid:  # not the file format: the stream format has no magic bytes to tell it by
                table = pa.ipc.open_stream(source).read_all()
        table = table.select(select_columns(path, table.column_names, required, optional))
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
        for name in select_columns(path, file.files, required, optional):
            try:
                arrays[name] = file[name]
            except ValueError as error:
                if "allow_pickle" not in str(error):
                    raise
                raise bad_column(
                    path, name, "holds Python objects; make its rows equally long and of one type"
                ) from error
        return arrays


def select_columns(
    path: Path, present: Sequence[str], required: Sequence[str], optional: Sequence[str] = ()
) -> list[str]:
    """Name the required columns, and the optional ones that are there.

    Raises:
        InputError: a required column is missing, or one of them stands there twice.
    """
    for name in required:
        if name not in present:
            raise InputError(f"{path}: column {name!r} is missing; it has {', '.join(map(repr, present)) or 'none'}")
    for name in (*required, *optional):
        if list(present).count(name) > 1:
            raise bad_column(path, name, "stands there more than once; keep one")
    return [*required, *(name for name in optional if name in present)]


def from_arrays(path: Path, arrays: dict[str, np.ndarray]) -> pa.Table:
    """Make a table of arrays that may come from anywhere."""
    columns: dict[str, pa.Array] = {}
    first = next(iter(arrays))
    for name, array in arrays.items():
        matrix = name == "logits" or name.endswith("features")
        if array.ndim != (2 if matrix else 1):
            expected = "[n, d]" if matrix else "[n]"
            raise bad_column(path, name, f"has shape {list(array.shape)}, not {expected}; reshape it")
        if array.ndim == 2 and array.shape[1] == 0:
            raise bad_column(path, name, "has no numbers in its rows")
        if len(array) != len(arrays[first]):
            raise bad_column(path, name, f"has {len(array)} rows, {first!r} has {len(arrays[first])}")
        flat = pa.array(array.reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, array.shape[1]) if array.ndim == 2 else flat
    return pa.table(columns)


def to_features(path: Path, column: pa.ChunkedArray, name: str = "features") -> np.ndarray:
    """Turn a list column into [n, d] float32."""
    kind = column.type
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise bad_column(path, name, f"is {kind}; make it a fixed-size list of float32")
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    lengths = np.concatenate([chunk.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False) for chunk in chunks])
    width = int(lengths[0])
    if column.null_count:
        raise bad_column(path, name, f"has {_nulls(column)}; drop those rows")
    if (lengths != width).any():
        row = int(np.argmax(lengths != width))
        raise bad_column(path, name, f"row {row} has {lengths[row]} numbers, row 0 has {width}; make them equal")
    if width == 0:
        raise bad_column(path, name, "has no numbers in its rows")
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
        raise bad_column(path, name, f"{what}; clean or drop them")
    return features


def to_codes(path: Path, table: pa.Table, name: str) -> tuple[np.ndarray, list[str]]:
    """Number a column's distinct values in sorted order: codes [n] int64, and the values as strings."""
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)  # each chunk may bring its own dictionary
    kind = column.type
    strings = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not strings and (name == "split" or not pa.types.is_integer(kind)):
        raise bad_column(path, name, f"is {kind}; make it {'' if name == 'split' else 'integers or '}strings")
    if column.null_count:
        raise bad_column(path, name, f"has {_nulls(column)}; fill or drop those rows")
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
