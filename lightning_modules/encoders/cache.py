"""Features computed once: an Arrow file for each encoder and set of items, mapped into memory ever after."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from lightning_modules.data.folder import cache_folder, read_file
from lightning_modules.encoders.adapter import Encoder, digest
from lightning_modules.errors import InputError

_VERSION = 1
_SHA256 = b"shiftlab_sha256"


def cached_features(
    encoder: Encoder, items: Sequence[Any], cache_dir: str | os.PathLike[str] | None = None
) -> np.ndarray:
    """Encode items, or map the features that an earlier call with the same encoder and items kept.

    An entry belongs to the encoder's hash (weights and preprocessing) and the content of the items, in their order; where
    files lie does not matter, what they hold does. Of several processes one encodes while the others wait; an entry
    appears whole or not at all, and one that is damaged is made anew.

    Args:
        encoder: what encodes.
        items: n texts, arrays, row numbers, or paths of files (also as strings, for an encoder of images).
        cache_dir: folder of the entries; None: "features" in shiftlab's cache folder ($SHIFTLAB_CACHE, else
            $XDG_CACHE_HOME/shiftlab, else ~/.cache/shiftlab).

    Returns:
        Features [n, d] float32, read-only.

    Raises:
        InputError: as `Encoder.encode`; an item of another kind; the folder cannot be written.
    """
    key = digest(_VERSION, encoder.sha256, encoder.dimension, hash_items(encoder, items))
    shape = (len(items), encoder.dimension)
    try:
        folder = cache_folder() / "features" if cache_dir is None else Path(cache_dir)
        file = folder / f"{key[:32]}.arrow"
        stored = _map(file, key, shape)
        if stored is not None:
            return stored
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(file.with_suffix(".lock")):
            stored = _map(file, key, shape)  # another process may have made it meanwhile
            if stored is None:
                _write(file, key, encoder.encode(items), shape)
                stored = _map(file, key, shape)
    except OSError as error:  # of the cache: an item that cannot be read is an InputError
        reason = error.strerror or str(error)
        raise InputError(
            f"cache_dir: cannot keep features ({reason}); set SHIFTLAB_CACHE to a folder to write"
        ) from error
    if stored is None:
        raise InputError(f"cache_dir: {file} cannot be read back; check the disk")
    return stored


def hash_items(encoder: Encoder, items: Sequence[Any]) -> str:
    """Hash the content of items: texts, the pixels of arrays, the bytes of files, numbers.

    Args:
        encoder: one of images takes strings for paths.
        items: in order.

    Raises:
        InputError: naming an item that is none of these, or a file that cannot be read.
    """
    total = hashlib.sha256()
    paths = getattr(encoder, "kind", None) == "image"
    for row, item in enumerate(items):
        if isinstance(item, os.PathLike) or (paths and isinstance(item, str)):
            what, content = "file", read_file(Path(item))
        elif isinstance(item, str):
            what, content = "text", item.encode("utf-8", "surrogatepass")
        elif isinstance(item, np.ndarray | np.generic | int) and np.asarray(item).dtype != object:
            array = np.ascontiguousarray(item)
            what, content = f"{array.dtype.str} {array.shape}", array.tobytes()
        else:
            raise InputError(f"item {row}: is {type(item).__name__}; give texts, arrays, paths or row numbers")
        total.update(f"{what} {len(content)} ".encode() + content)
    return total.hexdigest()


def _map(file: Path, key: str, shape: tuple[int, int]) -> np.ndarray | None:
    """Map an entry; None where there is none or it is not whole."""
    try:
        with pa.memory_map(str(file)) as source:
            table = pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowException):
        return None
    metadata = table.schema.metadata or {}
    kind = pa.list_(pa.float32(), shape[1])
    if table.num_rows != shape[0] or metadata.get(_SHA256) != key.encode() or table.schema.types != [kind]:
        return None
    if not shape[0]:
        return np.empty(shape, dtype=np.float32)
    features: np.ndarray = table.column(0).chunk(0).flatten().to_numpy()
    return features.reshape(shape)


def _write(file: Path, key: str, features: np.ndarray, shape: tuple[int, int]) -> None:
    """Write an entry under another name first, so that it appears whole or not at all."""
    if features.shape != shape:
        raise InputError(f"encoder: gave features {list(features.shape)} for {list(shape)}; mend its dimension")
    flat = pa.array(np.ascontiguousarray(features, dtype=np.float32).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, shape[1])
    schema = pa.schema([("features", column.type)], metadata={_SHA256: key})
    unfinished = file.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
    try:
        with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch([column], schema=schema))
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process of this machine makes the same entry."""
    with open(lock, "wb") as handle:
        # Some network file systems have no locks: then the work may be done twice, and both write the same.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
