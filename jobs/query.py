"""`shiftlab query`: SQL on a run's tables."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import json
import math
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cluster.errors import InputError
from jobs.command import command

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from cluster.store import Run

_EXAMPLES = """
shiftlab query runs/first "select method, status, count(*) from trials group by all"
shiftlab query runs/first "select * from metrics where step = 300" --format csv > metrics.csv
shiftlab query runs/first "show tables"
"""


@dataclass
class Options:
    """Run SQL (DuckDB's) on the tables of a run: trials, metrics, claims and whatever else it holds.

    Args:
        run: directory or bucket URI of the run.
        sql: the query. It sees the run's tables only, and can change neither them nor any file.
        format: a table to read, or csv or json to process further (the number of rows then goes to standard error).
    """

    run: str
    sql: str
    format: Literal["table", "csv", "json"] = "table"


def run(options: Options) -> int:
    """Run the query and print its rows; returns 0."""
    from cluster.store import Run

    rows = execute(Run(options.run), options.sql)
    try:
        {"table": _print_table, "csv": _print_csv, "json": _print_json}[options.format](rows)
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has seen enough. The interpreter would fail once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    count = f"{rows.num_rows:,} row{'' if rows.num_rows == 1 else 's'}"
    print(count, file=sys.stdout if options.format == "table" else sys.stderr)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run `shiftlab query`; returns the exit code."""
    return command(Options, run, argv, prog="shiftlab query", examples=_EXAMPLES, positional=True)


def execute(source: Run, sql: str) -> pa.Table:
    """Run SQL on a run's tables, each a view of the same name (rows as `Run.read` gives them, without repetitions).

    Args:
        source: the run.
        sql: one or several statements; the last one's rows are the result. File access, extensions and settings are
            off, so nothing outside the query's own memory can be read or changed.

    Returns:
        The rows; no columns for a statement without a result.

    Raises:
        InputError: for SQL that DuckDB refuses, with its reason and the names of the tables and columns.
    """
    import duckdb
    import pyarrow as pa

    from cluster.schemas import TABLES

    with duckdb.connect(config={"temp_directory": ""}) as db:
        for name in sorted({*TABLES, *source.tables()}):
            db.register(name, source.read(name))
        for setting in (
            "TimeZone = 'UTC'",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            db.execute(f"set {setting}")
        try:
            relation = db.sql(sql)
            return pa.table({}) if relation is None else relation.to_arrow_table()
        except duckdb.Error as error:
            reason = " ".join(str(error).split("\n\nLINE ")[0].split())
            raise InputError(f"sql: {reason}; the tables are {_tables(db)}") from None


def _tables(db: duckdb.DuckDBPyConnection) -> str:
    columns = db.execute(
        "select table_name, string_agg(column_name, ', ' order by column_index) from duckdb_columns() "
        "where not internal group by table_name order by table_name"
    ).fetchall()
    return "; ".join(f"{name}({names})" for name, names in columns)


def _print_table(rows: pa.Table) -> None:
    if not rows.num_columns:
        return
    columns = [[_text(value) for value in column.to_pylist()] for column in rows.columns]
    numeric = [_is_number(kind) for kind in rows.schema.types]
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name, number in zip(rows.column_names, numeric, strict=True):
            grid.add_column(Text(name), justify="right" if number else "left", overflow="fold")
        for row in zip(*columns, strict=True):
            grid.add_row(*map(Text, row))
        Console().print(grid)
        return
    cells = [[name, *column] for name, column in zip(rows.column_names, columns, strict=True)]
    widths = [max(map(len, column)) for column in cells]
    for row in zip(*cells, strict=True):
        aligned = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numeric, strict=True)
        ]
        print("  ".join(aligned).rstrip())


def _print_csv(rows: pa.Table) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(rows.column_names)
    for batch in rows.to_batches(10_000):
        columns = [[v if isinstance(v, float) else _plain(v) for v in column.to_pylist()] for column in batch.columns]
        for row in zip(*columns, strict=True):
            writer.writerow([json.dumps(v) if isinstance(v, list | dict | bool) else v for v in row])


def _print_json(rows: pa.Table) -> None:
    names = rows.column_names
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"sql: two columns are called {twice[0]!r}, which JSON cannot hold; rename one with AS")
    before = "[\n"
    for batch in rows.to_batches(10_000):
        columns = [[_plain(value) for value in column.to_pylist()] for column in batch.columns]
        for row in zip(*columns, strict=True):
            record = json.dumps(dict(zip(names, row, strict=True)), allow_nan=False, ensure_ascii=False)
            sys.stdout.write(f"{before}  {record}")
            before = ",\n"
    print("[]" if before == "[\n" else "\n]")


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def _plain(value: Any) -> Any:
    """Turn a value into what JSON knows: moments as ISO text, NaN and infinity (which JSON lacks) as null."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def _text(value: Any) -> str:
    """Show a value on one line of a table."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    plain = _plain(value)
    if isinstance(plain, list):
        return ", ".join(map(_text, plain))
    if isinstance(plain, dict):
        return json.dumps(plain, ensure_ascii=False)
    return " ".join(str(plain).splitlines())


if __name__ == "__main__":
    sys.exit(main())
