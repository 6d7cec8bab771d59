"""Features that are there already, as an encoder: what another program computed, one row an item."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from lightning_modules.data.columns import read_columns
from lightning_modules.encoders.adapter import check_finite, digest
from lightning_modules.errors import InputError


class ArrayEncoder:
    """An `Encoder` that looks features up.

    Args:
        features: [n, d], kept as float32.
        keys: the n items that they are of, such as captions or file names; None: their row numbers 0 to n - 1.
        name: what people call it.

    Raises:
        InputError: features of another shape, or not finite; keys of another number, or one twice.
    """

    def __init__(self, features: np.ndarray, keys: Sequence[Hashable] | None = None, name: str = "array") -> None:
        features = np.asarray(features)
        if features.ndim != 2 or 0 in features.shape:
            raise InputError(f"features: have shape {list(features.shape)}, not [n, d]; reshape them")
        found = range(len(features)) if keys is None else [_key(key) for key in keys]
        if len(found) != len(features):
            raise InputError(f"keys: {len(found)} for {len(features)} rows of features; give one a row")
        self._rows = {key: row for row, key in enumerate(found)}
        if len(self._rows) < len(found):
            twice = next(key for row, key in enumerate(found) if self._rows[key] != row)
            raise InputError(f"keys: {twice!r} stands there twice; keep one")
        self._features = check_finite(features.astype(np.float32), found)
        self.name, self.dimension = name, features.shape[1]
        content = hashlib.sha256(np.ascontiguousarray(self._features).data).hexdigest()
        self.sha256 = digest(self._features.shape, content, [repr(key) for key in found])

    @classmethod
    def from_table(cls, path: str | os.PathLike[str], column: str = "features", key: str | None = None) -> ArrayEncoder:
        """Read the features of a table (.parquet, .arrow, .feather, .npz).

        Args:
            path: of the table.
            column: of lists of numbers, equally long.
            key: column of the items that the rows are of, as strings; None: items are row numbers.

        Raises:
            InputError: naming the table and the column, as `lightning_modules.data.columns.read_columns`.
        """
        features, strings = read_columns(path, (column,), () if key is None else (key,))
        return cls(features[column], None if key is None else strings[key], os.path.basename(path))

    def encode(self, items: Sequence[Any]) -> np.ndarray:
        """Look up features [n, d] float32 of n items.

        Raises:
            InputError: naming an item that has none.
        """
        rows = [self._rows.get(_key(item), -1) for item in items]
        if -1 in rows:
            row = rows.index(-1)
            raise InputError(f"item {row}: {self.name} has no features of {items[row]!r}; compute them and add a row")
        return self._features[rows]


def _key(item: Any) -> Any:
    return item.item() if isinstance(item, np.generic) else os.fspath(item) if isinstance(item, os.PathLike) else item
