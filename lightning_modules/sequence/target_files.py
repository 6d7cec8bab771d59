"""Files of k-sparse targets: an Arrow file whose pages the reader maps into memory, or a Parquet file that others can query."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lightning_modules.errors import InputError
from lightning_modules.sequence.sparse_targets import TAILS, KSparseTargets

_ABOUT = b"shiftlab.k_sparse_targets"
_SUFFIXES = (".arrow", ".parquet")


def targets_schema(k: int, vocabulary: int, tail: str, precision: Literal[16, 32] = 16) -> pa.Schema:
    """Columns `ids` and `probabilities`, both lists of k, and `mass`; a row is a token."""
    kind = pa.float16() if precision == 16 else pa.float32()
    about = json.dumps({"vocabulary": vocabulary, "tail": tail})
    return pa.schema(
        [("ids", pa.list_(pa.int32(), k)), ("probabilities", pa.list_(kind, k)), ("mass", pa.float32())],
        metadata={_ABOUT: about.encode()},
    )


def write_targets(
    path: str | Path, batches: KSparseTargets | Iterable[KSparseTargets], precision: Literal[16, 32] = 16
) -> Path:
    """Write targets, batch by batch, so that those of a whole corpus need not be in memory.

    Args:
        path: ends in .arrow (uncompressed, to be mapped into memory) or .parquet (compressed, for other programs).
        batches: of equal k, vocabulary and tail.
        precision: of the probabilities, in bits: ids take 32, the mass too. Under 16 bits a probability has 11 significant
            bits and those below 3e-8 become 0; the mass keeps what is lost that way.

    Returns:
        The path.

    Raises:
        InputError: another ending or precision, no batch, batches that differ.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise InputError(f"path: {path.name!r} ends in {path.suffix!r}; give a name ending in {' or '.join(_SUFFIXES)}")
    if precision not in (16, 32):
        raise InputError(f"precision: is {precision}; give 16 or 32 bits")
    parts = iter([batches] if isinstance(batches, KSparseTargets) else batches)
    first = next(parts, None)
    if first is None:
        raise InputError("batches: there is none; give targets of one token or more")
    schema = targets_schema(first.k, first.vocabulary, first.tail, precision)
    made = pa.ipc.new_file(str(path), schema) if path.suffix == ".arrow" else pq.ParquetWriter(str(path), schema)
    with made as writer:
        for part in chain([first], parts):
            if (part.k, part.vocabulary, part.tail) != (first.k, first.vocabulary, first.tail):
                raise InputError("batches: differ in k, vocabulary or tail; write one file for each")
            writer.write_batch(_batch_of(part, schema))
    return path


def _batch_of(targets: KSparseTargets, schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for name, part in (("ids", targets.ids), ("probabilities", targets.probabilities)):
        kind = schema.field(name).type
        values = part.detach().cpu().numpy().astype(kind.value_type.to_pandas_dtype())
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=kind))
    return pa.record_batch([*columns, pa.array(targets.mass.detach().cpu().float().numpy())], schema=schema)


class StoredTargets:
    """The targets of a file. Of an .arrow file only the pages that are asked for are read; a .parquet file is read whole.

    Args:
        path: of a file that `write_targets` wrote.

    Raises:
        InputError: naming the file, if it cannot be read or holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            if self._path.suffix == ".parquet":
                self._table = pq.read_table(self._path)
            else:
                self._table = pa.ipc.open_file(pa.memory_map(str(self._path))).read_all()
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{self._path}: cannot be read as targets ({reason}); write it anew") from None
        about = json.loads((self._table.schema.metadata or {}).get(_ABOUT, b"{}"))
        wrong = {"ids", "probabilities", "mass"} - set(self._table.column_names)
        if wrong or about.get("tail") not in TAILS:
            raise InputError(f"{self._path}: holds no k-sparse targets; give a file that write_targets wrote")
        self.k: int = self._table.schema.field("ids").type.list_size
        self.vocabulary: int = about["vocabulary"]
        self.tail = about["tail"]

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def bytes_per_token(self) -> float:
        """Size of the file over its tokens."""
        return self._path.stat().st_size / max(1, len(self))

    def rows(self, index: slice | Tensor) -> KSparseTargets:
        """Targets of some tokens: a slice without a step, or numbers [n] in any order, repeated or not."""
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            part = self._table.slice(start, max(0, stop - start))
        else:
            part = self._table.take(pa.array(index.numpy()))
        ids, probabilities = (_matrix(part[name], self.k) for name in ("ids", "probabilities"))
        mass = torch.from_numpy(part["mass"].to_numpy().copy())
        return KSparseTargets(ids, probabilities, mass, self.vocabulary, self.tail)


def _matrix(column: pa.ChunkedArray, k: int) -> Tensor:
    """A column of lists as [n, k]; `flatten` heeds where a slice begins."""
    chunks: list[Any] = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return torch.from_numpy(np.concatenate(chunks).reshape(-1, k) if chunks else np.zeros((0, k), np.float32))
