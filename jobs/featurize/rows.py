"""What is to be encoded: images of a folder or a table, with captions or without."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cluster.errors import InputError

if TYPE_CHECKING:
    from jobs.featurize import Featurize
    from lightning_modules.data.folder import ImageList
    from lightning_modules.encoders import FrozenEncoder, Kind

_COLUMNS, _OPTIONAL = ("path", "label", "environment"), ("split",)
_FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".feather": "feather", ".csv": "csv"}


@dataclass(frozen=True)
class Source:
    """Items for one encoder, and which of them each row of the table has.

    Args:
        column: of the table, for the features.
        encoder: what encodes them.
        dataset: what the items are called.
        items: [m] paths relative to root, as bytes since file names need not be UTF-8; or texts.
        root: of paths; None for texts.
        index: [n] the item of each row of the table.
        key: fingerprint of a slice of the items.
    """

    column: str
    encoder: FrozenEncoder
    dataset: str
    items: pa.Array
    root: str | None
    index: np.ndarray
    key: Callable[[slice], str]


@dataclass(frozen=True)
class Rows:
    """The rows of a table to write.

    Args:
        noun: what the rows are called.
        sources: what is to be encoded, a column of features each.
        columns: what else the table holds, in that order.
    """

    noun: str
    sources: tuple[Source, ...]
    columns: dict[str, pa.Array]

    @property
    def total(self) -> int:
        """Rows of the table."""
        return len(self.sources[0].index)


def load_images(options: Featurize) -> Rows:
    """Find images with labels and environments, and load the encoder."""
    from lightning_modules.data.folder import scan_folder

    _check(options.encoder, options.pooling, "image")
    path = Path(options.data).expanduser()
    images, splits = scan_table(path) if path.is_file() else (scan_folder(path), None)
    columns = {
        "label": pa.array(np.array(images.classes)[images.labels]),
        "environment": pa.array(np.array(images.environments)[images.environment]),
    }
    if splits is not None:
        columns["split"] = splits
    encoder = _open(options.encoder, "image", options.pooling, options.image_size)
    return Rows("images", (_image_source("features", encoder, images),), columns)


def load_pairs(options: Featurize) -> Rows:
    """Find images with captions, and load both encoders."""
    from lightning_modules.data.captioned import read_captioned

    assert options.text_encoder is not None
    _check(options.encoder, options.pooling, "image")
    _check(options.text_encoder, options.text_pooling, "text")
    found = read_captioned(options.data, options.templates)
    captions = pa.array(found.captions, pa.large_string())
    columns = {
        "caption": captions,
        "image": pa.array([os.fsencode(file).decode("utf-8", "replace") for file in found.images.files]),
    }
    columns |= {name: pa.array(values) for name, values in found.columns.items()}
    image_encoder = _open(options.encoder, "image", options.pooling, options.image_size)
    text_encoder = _open(options.text_encoder, "text", options.text_pooling, None)
    # A caption that many images share is encoded once.
    distinct = captions.dictionary_encode()

    def key(part: slice) -> str:
        texts = distinct.dictionary[part].to_pylist()
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:32]

    index = distinct.indices.to_numpy().astype(np.int64)
    texts = Source("text_features", text_encoder, found.images.root.name, distinct.dictionary, None, index, key)
    return Rows("pairs", (_image_source("image_features", image_encoder, found.images), texts), columns)


def _image_source(column: str, encoder: FrozenEncoder, images: ImageList) -> Source:
    size = int(encoder.settings["image_size"])
    files = pa.array([os.fsencode(file) for file in images.files], pa.large_binary())

    def key(part: slice) -> str:
        return images.key(size, part)

    return Source(column, encoder, images.root.name, files, str(images.root), np.arange(len(files)), key)


def _check(name: str, pooling: str, kind: Kind) -> None:
    """Refuse quickly, before images are looked for, what is no encoder."""
    from lightning_modules.encoders import BUILT_IN, check_encoder

    if name not in BUILT_IN:
        check_encoder(name, pooling)
    elif BUILT_IN[name] != kind:
        raise InputError(
            f"{'text_encoder' if kind == 'text' else 'encoder'}: {name} encodes {BUILT_IN[name]}s, not {kind}s"
        )


def _open(name: str, kind: Kind, pooling: str, image_size: int | None) -> FrozenEncoder:
    from lightning_modules.encoders import FrozenEncoder, open_encoder

    encoder = open_encoder(name, kind, pooling, image_size)
    assert isinstance(encoder, FrozenEncoder)  # `_check` has refused tables, which are no directories
    return encoder


def scan_table(path: Path) -> tuple[ImageList, pa.Array | None]:
    """Find the images that a table names: columns path (relative to the table), label, environment, perhaps split.

    Returns:
        The images in the table's order, and the column split as strings, if it has one.

    Raises:
        InputError: naming the table, column or row, for a file that is no such table, missing columns, nulls, no rows,
            or an image that is not there.
    """
    from lightning_modules.data.folder import ImageList

    table = _read_table(path)
    for name in _COLUMNS:
        if name not in table.column_names:
            raise InputError(f"{path}: column {name!r} is missing; it has {', '.join(map(repr, table.column_names))}")
    if not len(table):
        raise InputError(f"{path}: has no rows; fill it")
    columns = {}
    for name in [*_COLUMNS, *(name for name in _OPTIONAL if name in table.column_names)]:
        if table[name].null_count:
            raise InputError(f"{path}: column {name!r}: has {table[name].null_count} nulls; fill or drop those rows")
        try:
            columns[name] = table[name].cast(pa.string()).combine_chunks()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise InputError(f"{path}: column {name!r}: is {table[name].type}; make it strings or integers") from None
    root, files = path.absolute().parent, columns["path"].to_pylist()
    sizes, mtimes = np.empty((2, len(files)), dtype=np.int64)
    for row, file in enumerate(files):
        try:
            about = os.stat(root / file)
        except OSError as error:
            raise InputError(f"{path}: row {row}: {file}: {error.strerror}; mend the path") from None
        sizes[row], mtimes[row] = about.st_size, about.st_mtime_ns
    labels, environments = (columns[name].dictionary_encode() for name in ("label", "environment"))
    return ImageList(
        root,
        tuple(files),
        tuple(environments.dictionary.to_pylist()),
        environments.indices.to_numpy().astype(np.int64),
        tuple(labels.dictionary.to_pylist()),
        labels.indices.to_numpy().astype(np.int64),
        sizes,
        mtimes,
        (),
    ), columns.get("split")


def _read_table(path: Path) -> pa.Table:
    import pyarrow.dataset as pads

    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path}: is no folder and no table that ends in {', '.join(_FORMATS)}; give one")
    try:
        return pads.dataset(path, format=kind).to_table()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read as {kind} ({reason}); write it anew") from error
