"""Write a table of features, whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import InputError
from jobs.command import versions
from jobs.featurize.chunks import Chunk
from jobs.featurize.rows import Rows

METADATA_KEY = b"shiftlab_features"
"""Key of the table's Parquet metadata: JSON with the encoder, its hashes, pooling, image size and versions; of pairs, for
each column of features."""


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn what goes wrong while writing beside `out` into InputErrors."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"out: cannot write to {out.parent} ({reason}); make room and run the command again"
        ) from error


@contextlib.contextmanager
def lock(out: Path, parts: Path) -> Iterator[None]:
    """Keep other processes from writing the same table."""
    with contextlib.ExitStack() as stack:
        with writing(out):
            parts.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context(open(parts / "lock", "wb"))
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"out: another process is writing {out}; wait for it to end") from None
        yield


def assemble(out: Path, rows: Rows, chunks: Sequence[Sequence[Chunk]]) -> None:
    """Write the table, a row group a chunk of images; it appears whole or not at all.

    Raises:
        InputError: a chunk is not there.
    """
    lists = [pa.list_(pa.float32(), source.encoder.dimension) for source in rows.sources]
    fields = [(source.column, kind) for source, kind in zip(rows.sources, lists, strict=True)]
    fields += [(name, pa.string()) for name in rows.columns]
    schema = pa.schema(fields, metadata={METADATA_KEY: json.dumps(_about(rows), sort_keys=True)})
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
            for part in (chunk.items for chunk in chunks[0]):
                columns = [
                    pa.FixedSizeListArray.from_arrays(
                        pa.array(_gather(found, source.index[part]).reshape(-1)), kind.list_size
                    )
                    for source, found, kind in zip(rows.sources, chunks, lists, strict=True)
                ]
                columns += [values[part].cast(pa.string()) for values in rows.columns.values()]
                writer.write_table(pa.table(columns, schema=schema))
        os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)


def _gather(chunks: Sequence[Chunk], index: np.ndarray) -> np.ndarray:
    """Read the features [n, d] of items, by their numbers [n]; all chunks but the last are equally large."""
    features = np.empty((len(index), chunks[0].dimension), dtype=np.float32)
    place, row = np.divmod(index, chunks[0].size)
    for number in np.unique(place):
        kept = chunks[number].read()
        if kept is None:
            raise InputError(f"out: {chunks[number].file} is gone or damaged; run the command again to make it anew")
        here = place == number
        features[here] = kept[row[here]]
    return features


def _about(rows: Rows) -> dict[str, object]:
    packages = {name for source in rows.sources for name in source.encoder.packages} | {"pillow"}
    libraries = {**json.loads(versions()), **{name: version(name) for name in sorted(packages)}}
    if len(rows.sources) == 1:
        return {**rows.sources[0].encoder.about(), "versions": libraries}
    return {source.column: source.encoder.about() for source in rows.sources} | {"versions": libraries}
