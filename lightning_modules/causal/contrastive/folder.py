"""A person's own data: a folder with `obs` and `env_1` ... `env_d`, each rows in a file or a folder of images."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_modules.causal.contrastive.environments import InterventionalDataset
from lightning_modules.data.equal_images import read_equal_images
from lightning_modules.data.folder import SUFFIXES
from lightning_modules.errors import InputError

Array = np.ndarray

_ROWS = (".npy", ".parquet")


def read_interventional_folder(path: str | os.PathLike[str], d: int | None = None) -> InterventionalDataset:
    """Read one observational and d interventional environments.

    Args:
        path: folder with `obs` and `env_1` ... `env_d`. Each is NAME.npy (rows [n, dx], or uint8 images [n, 3, height, width]),
            NAME.parquet (every column a feature, or a list of them), or a folder NAME of equally sized images (.png, .jpg, .jpeg),
            taken in the order of their names as RGB pixels.
        d: latents, where known; None: as many as there are interventional environments.

    Raises:
        InputError: naming the file or environment: one is missing or there twice, cannot be read, has no rows, images of different
            sizes, other features than `obs`, NaN or text, or their number is not d.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"{path}: no such folder; give one with obs and env_1 ... env_d")
    found: dict[str, Path] = {}
    for entry in sorted(root.iterdir()):
        name = entry.stem if entry.suffix in _ROWS else entry.name
        if not re.fullmatch(r"obs|env_[1-9]\d*", name):
            continue
        if name in found:
            raise InputError(f"{entry}: {found[name].name} is there too; leave one of them")
        found[name] = entry
    if "obs" not in found:
        raise InputError(
            f"{path}: has no observational environment; add obs.npy, obs.parquet or a folder obs of images"
        )
    names = [f"env_{t + 1}" for t in range(len(found) - 1)]
    for name in names:
        if name not in found:
            raise InputError(f"{path}: has no {name}, but {len(names)} env_ entries; number them from 1 without a gap")
    arrays = {name: read_rows(found[name]) for name in ["obs", *names]}
    return InterventionalDataset(arrays["obs"], [arrays[name] for name in names], d)


def read_rows(path: Path) -> Array:
    """Rows [n, dx] of a .npy or .parquet file or a folder of images; uint8 for pixels.

    Raises:
        InputError: as `read_interventional_folder`.
    """
    if path.is_dir():
        return _images(path)
    if path.suffix == ".parquet":
        return _table(path)
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); save an array with numpy.save"
        ) from error
    if rows.ndim == 4 and rows.dtype == np.uint8:
        rows = rows.reshape(len(rows), -1)
    if rows.ndim != 2:
        raise InputError(f"{path}: has shape {list(rows.shape)}; give rows [n, dx]")
    found: Array = rows
    return found


def _table(path: Path) -> Array:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}); give a Parquet table") from error
    blocks = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count:
            raise InputError(f"{path}: column {name} has {column.null_count} empty cells; fill or drop these rows")
        try:
            block = np.array(column.to_pylist() if pa.types.is_nested(column.type) else column.to_numpy(), np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: column {name} is {column.type}, no numbers of one width; drop it") from error
        blocks.append(block.reshape(table.num_rows, -1 if block.size else 1))
    if not blocks:
        raise InputError(f"{path}: has no columns; give one a feature")
    return np.concatenate(blocks, 1)


def _images(path: Path) -> Array:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{path}: has no images; give .png or .jpg files")
    return read_equal_images(files)
