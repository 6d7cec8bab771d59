"""The result store: an Arrow log for every row at once, sealed into Parquet parts that appear whole or not at all.

A row is acknowledged when it is in the log, which survives the death of the process (not of the machine's power).
Every few seconds the log's segment is sealed: written as one Parquet part a table, and the segment deleted. Segment
and parts share a name, so sealing twice (a crash between the two steps) writes the same files again and duplicates
nothing. Parts are ordinary Parquet: pyarrow, DuckDB, Polars or pandas read them while the run goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.errors import InputError
from cluster.retrying import BUDGET_S, is_final, reason, warn
from cluster.schemas import SCHEMA_VERSION, TABLES
from cluster.storage import Location

_SEAL_ROWS = 200_000
_FIRST_SEAL_S = 1.0
_PATIENCE_S = 5.0  # of a seal that can come later


class Run:
    """Read access to a run's tables.

    Args:
        uri: local path or bucket URI of the run.

    Raises:
        InputError: when there is no run at the location, or another schema version made it.
    """

    def __init__(self, uri: str) -> None:
        self.location = Location.resolve(uri)
        if not self.location.exists("run.json"):
            raise InputError(f"run: nothing found at {uri!r}; give the directory or URI that an earlier --run named")
        _check_version(self.location)

    def tables(self) -> list[str]:
        """Names of the tables that hold sealed rows, sorted."""
        folders = [name for name in self.location.list_folders() if not name.startswith(("_", "."))]
        # A run has other folders too, such as the weights of its models.
        return [name for name in folders if any(file.endswith(".parquet") for file in self.location.list_files(name))]

    def read(self, table: str, schema: pa.Schema | None = None) -> pa.Table:
        """Read a table: sealed parts and, on the machine that writes it, the rows still in a log.

        Rows follow the project's schema where one is declared; columns that an older part lacks read as null.
        Of several rows for one trial the completed one wins, then the latest.
        """
        result = self._read_all(table, schema or TABLES.get(table))
        if table == "trials":
            return _latest_per_trial(result)
        if table == "metrics" and self._has_repeated_trials():
            return _unique_metrics(result)
        return result

    def _read_all(self, table: str, declared: pa.Schema | None) -> pa.Table:
        # Logs first, parts second: a segment sealed in between is then seen as a part and its log copy dropped.
        logs = [
            (name, _read_log(paths[table]))
            for name, paths in _log_segments(self.location.log_directory())
            if table in paths
        ]
        names = [n for n in self.location.list_files(table) if n.endswith(".parquet")]
        pieces = [rows for name, rows in logs if rows is not None and f"part-{name}.parquet" not in names]
        if names:
            pieces.insert(0, self._read_parts(table, names, declared))
        if declared is not None:
            pieces.insert(0, declared.empty_table())
        return pa.concat_tables(pieces, promote_options="permissive") if pieces else pa.table({})

    def _has_repeated_trials(self) -> bool:
        trials = self._read_all("trials", TABLES["trials"])
        completed = trials.filter(pc.equal(trials["status"], "completed"))["trial_id"]
        return len(pc.unique(completed)) < len(completed)

    def _read_parts(self, table: str, names: Sequence[str], declared: pa.Schema | None) -> pa.Table:
        import pyarrow.dataset as pads  # brings in pandas where that is installed: only readers should wait for it

        paths = [self.location.path(table, name) for name in names]

        def read() -> pa.Table:
            dataset = pads.dataset(paths, filesystem=self.location.filesystem, format="parquet")
            # Without an explicit schema a dataset takes its first file's and silently drops newer columns.
            fragments = [fragment.physical_schema for fragment in dataset.get_fragments()]
            schema = pa.unify_schemas([*([declared] if declared else []), *fragments], promote_options="permissive")
            return dataset.replace_schema(schema).to_table()

        return self.location.trying(read, "reading")

    def read_completed(self, table: str, schema: pa.Schema, keys: Sequence[str] = ("trial_id",)) -> pa.Table:
        """Read what completed trials stored in a job's own table.

        A trial that ran twice (two launches at once, or a crash between its rows) has equal rows; one of them is kept.

        Args:
            table: its name.
            schema: its columns, for a run that has none of them yet.
            keys: columns that tell a trial's rows apart, `trial_id` first.
        """
        rows = self.read(table, schema)
        trials = self.read("trials")
        completed = trials.filter(pc.equal(trials["status"], "completed"))["trial_id"]
        rows = rows.filter(pc.is_in(rows["trial_id"], pc.unique(completed)))
        numbered = rows.append_column("_row", pa.array(range(rows.num_rows), pa.int64()))
        first = numbered.group_by(list(keys), use_threads=False).aggregate([("_row", "min")])["_row_min"]
        return rows.take(first.combine_chunks())

    def trial_status(self) -> dict[str, str]:
        """Map each stored trial's id to its status."""
        table = self.read("trials")
        return dict(zip(table["trial_id"].to_pylist(), table["status"].to_pylist(), strict=True))


class Store:
    """Write access to a run; at most one thread writes.

    Args:
        uri: local path or bucket URI; created when absent, added to when present.
        schemas: tables beyond the project's own, by name.

    Raises:
        InputError: when the run cannot be written or another schema version made it.
    """

    def __init__(self, uri: str, schemas: Mapping[str, pa.Schema] | None = None) -> None:
        self.location = Location.resolve(uri)
        self.location.check_writable()
        self._fresh = not self.location.exists("run.json")
        if not self._fresh:
            _check_version(self.location)
        else:
            about = {"schema_version": SCHEMA_VERSION, "what": "a shiftlab run: Parquet tables, one folder each"}
            self.location.write(json.dumps(about, indent=1).encode(), "run.json")
        self._schemas = {**TABLES, **(schemas or {})}
        self._logs = self.location.log_directory()
        self._logs.mkdir(parents=True, exist_ok=True)
        self.recovered = self._recover()
        self._writer = f"{time.time_ns() // 1_000_000:x}-{uuid.uuid4().hex[:6]}"
        self._lock = open(self._logs / f"{self._writer}.lock", "wb")  # noqa: SIM115 - held until close
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._segment = 0
        self._unsealed: list[str] = []  # segments that are closed and could not be written yet
        self._open: dict[str, tuple[pa.NativeFile, pa.ipc.RecordBatchStreamWriter]] = {}
        self._rows = 0
        self._began = self._sealed_at = time.monotonic()

    def __enter__(self) -> Store:
        """Return the store."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Seal what is in the log and close; a new run that an error ended before its first row is taken away."""
        self.close()
        if kind is not None and self._fresh:
            self._discard()

    def append(self, tables: Mapping[str, Sequence[Sequence[Any]] | pa.Table | pa.RecordBatch]) -> None:
        """Store rows; when this returns they survive the death of the process.

        Args:
            tables: rows by table name, as an Arrow table or batch, or as tuples in the order of the table's schema.
                `trials` is written last, so that a trial's row is never found without its metrics.
        """
        for name in sorted(tables, key=lambda n: n == "trials"):
            rows = tables[name]
            if len(rows) == 0:
                continue
            self._fresh = False
            batches = self._batches(name, rows)
            if name not in self._open:
                sink = pa.OSFile(str(self._logs / f"{self._writer}-{self._segment:06d}.{name}.arrow"), "wb")
                self._open[name] = (sink, pa.ipc.new_stream(sink, self._schemas[name]))
            for batch in batches:
                self._open[name][1].write_batch(batch)
                self._rows += batch.num_rows
        self.tick()

    def _batches(self, name: str, rows: Sequence[Sequence[Any]] | pa.Table | pa.RecordBatch) -> list[pa.RecordBatch]:
        schema = self._schemas[name]
        if isinstance(rows, pa.RecordBatch):
            rows = pa.Table.from_batches([rows])
        if isinstance(rows, pa.Table):
            return list(rows.select(schema.names).cast(schema).to_batches())
        columns = zip(*rows, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        return [pa.RecordBatch.from_arrays(arrays, schema=schema)]

    def tick(self) -> None:
        """Seal if it is time to: at first after a second, then ever more rarely, so that parts stay few.

        An object store that cannot be written for a while ends nothing: the rows stay in the log, which is on this
        machine's disk, until a later time.
        """
        now = time.monotonic()
        wait = max(_FIRST_SEAL_S, (now - self._began) / 50)
        waiting = self._rows or self._unsealed
        if self._rows < _SEAL_ROWS and not (waiting and now - self._sealed_at >= wait):
            return
        try:
            self._seal(_PATIENCE_S)
        except OSError as error:
            if self.location.is_local or is_final(error):
                raise
            self._sealed_at = time.monotonic()
            where = f"{self.location.uri} cannot be written ({reason(error)})"
            warn(f"{where}; rows stay in {self._logs} until it can", always=True)

    def seal(self) -> None:
        """Turn the log into Parquet parts.

        Raises:
            OSError: when they cannot be written; the rows stay in the log, which the next launch seals.
        """
        self._seal(BUDGET_S)

    def _seal(self, budget: float) -> None:
        for sink, writer in self._open.values():
            writer.close()
            sink.close()
        if self._open:
            self._open = {}
            self._unsealed.append(f"{self._writer}-{self._segment:06d}")
            self._segment += 1
            self._rows = 0
        while self._unsealed:
            name = self._unsealed[0]
            self._seal_segment(name, dict(_log_segments(self._logs))[name], budget)
            del self._unsealed[0]
        self._sealed_at = time.monotonic()
        # Arrow would keep the pages of every sealed segment; memory then seems to grow with the number of trials.
        pa.default_memory_pool().release_unused()

    def _seal_segment(self, name: str, paths: Mapping[str, Path], budget: float = BUDGET_S) -> int:
        tables = {table: content for table, path in paths.items() if (content := _read_log(path)) is not None}
        trials = tables.get("trials")
        if "metrics" in tables:
            # A log cut short may hold metrics whose trial row was never written: that trial will run again.
            known = trials["trial_id"] if trials is not None else pa.chunked_array([[]], pa.string())
            tables["metrics"] = tables["metrics"].filter(pc.is_in(tables["metrics"]["trial_id"], pc.unique(known)))
        for table in sorted(tables, key=lambda n: n == "trials"):
            if tables[table].num_rows:
                sink = pa.BufferOutputStream()
                pq.write_table(tables[table], sink, compression="zstd")
                self.location.write(sink.getvalue(), table, f"part-{name}.parquet", budget=budget)
        for path in paths.values():
            path.unlink(missing_ok=True)
        return sum(table.num_rows for table in tables.values())

    def _recover(self) -> int:
        """Seal what a writer that died left in its log; returns the number of rows saved."""
        rows = 0
        segments = dict(_log_segments(self._logs))
        for lock in sorted(self._logs.glob("*.lock")):
            with open(lock, "rb") as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # its writer is alive
                for name in [n for n in segments if n.rsplit("-", 1)[0] == lock.stem]:
                    rows += self._seal_segment(name, segments[name])
                lock.unlink(missing_ok=True)
        return rows

    def close(self) -> None:
        """Seal the rest and release the log."""
        self.seal()
        if not self._lock.closed:
            self._lock.close()
            (self._logs / f"{self._writer}.lock").unlink(missing_ok=True)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._logs.rmdir()  # fails where another writer has joined the run
            self.location.filesystem.delete_file(self.location.path("run.json"))
            if self.location.is_local:
                os.rmdir(self.location.root)


def _check_version(location: Location) -> None:
    try:
        found = json.loads(location.read("run.json"))["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"run: {location.uri!r} has an unreadable run.json; choose another --run") from None
    if found != SCHEMA_VERSION:
        raise InputError(
            f"run: {location.uri!r} was made with schema version {found}, this shiftlab writes {SCHEMA_VERSION}; "
            "choose another --run or install the shiftlab that made it"
        )


def _log_segments(folder: Path) -> Iterable[tuple[str, dict[str, Path]]]:
    """Yield (segment name, {table: log file}) for every log segment in a folder, oldest first."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*.arrow")) if folder.is_dir() else []:
        name, table, _ = path.name.rsplit(".", 2)
        found.setdefault(name, {})[table] = path
    return found.items()


def _read_log(path: Path) -> pa.Table | None:
    """Read the whole batches of a log that may still be written or be cut short; None when there is none."""
    try:
        if os.path.getsize(path) == 0:
            return None
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_stream(source)
            batches = []
            while True:
                try:
                    batches.append(reader.read_next_batch())
                except (StopIteration, pa.ArrowInvalid, OSError):
                    break
            table = pa.Table.from_batches(batches, reader.schema)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    return table if table.num_rows else None


def _latest_per_trial(trials: pa.Table) -> pa.Table:
    """Keep one row a trial: completed before anything else, then the latest."""
    if len(pc.unique(trials["trial_id"])) == trials.num_rows:
        return trials
    completed = pc.cast(pc.equal(trials["status"], "completed"), pa.int8())
    keyed = trials.append_column("_completed", completed).append_column("_row", pa.array(range(trials.num_rows)))
    order = keyed.sort_by([("_completed", "descending"), ("started_at", "descending")])
    first = order.group_by("trial_id", use_threads=False).aggregate([("_row", "first")])
    return trials.take(first["_row_first"].combine_chunks().sort())


def _unique_metrics(metrics: pa.Table) -> pa.Table:
    """Drop repeated measurements, which appear when two launches ran the same trial at once (the values are equal)."""
    keys = ["trial_id", "step", "environment", "split", "metric"]
    groups = metrics.group_by(keys, use_threads=False).aggregate([("value", "first")])
    if groups.num_rows == metrics.num_rows:
        return metrics
    return groups.rename_columns([*keys, "value"]).cast(metrics.schema)
