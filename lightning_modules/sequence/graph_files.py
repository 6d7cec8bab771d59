"""Graphs and queries of a person's own, from text, Arrow or Parquet files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.sequence.graphs import Graph, rooted

_ARROW = (".arrow", ".feather", ".ipc", ".parquet", ".pq")


def from_edge_list(path: str | os.PathLike[str], root: str = "") -> Graph:
    """Read a graph: one edge in a row, by the names of its ends; nodes are numbered as they first appear.

    Rows that join the same two nodes again are left out. With a root, edges point away from it and every other node of
    degree 1 is the leaf of an arm: the shortest path from the root.

    Args:
        path: a text file of rows `u v`, parted by spaces, a tab or a comma, # begins a comment; or an Arrow IPC, Feather or
            Parquet file whose first two columns are the ends.
        root: name of the node where arms begin; "": the graph has no arms.

    Raises:
        InputError: naming the file and row, where a row has not two names or joins a node to itself; no edges; no such root.
    """
    numbers: dict[str, int] = {}
    edges: dict[tuple[int, int], tuple[int, int]] = {}
    for row, u, v in _pairs(Path(path), "edges"):
        if u == v:
            raise InputError(f"{path}, row {row}: joins {u} to itself; leave it out")
        a, b = (numbers.setdefault(name, len(numbers)) for name in (u, v))
        edges.setdefault((min(a, b), max(a, b)), (a, b))
    if not edges:
        raise InputError(f"{path}: has no edges; give rows of two names")
    graph = Graph(len(numbers), np.array(list(edges.values())), names=tuple(numbers))
    return rooted(graph, graph.number(root)) if root else graph


def read_queries(path: str | os.PathLike[str], graph: Graph) -> tuple[tuple[int, ...], ...]:
    """Read queries, rows `source,target` of node names (these two words may head them), and answer each with a shortest path.

    Args:
        path: a file as `from_edge_list` takes.
        graph: that it asks about.

    Raises:
        InputError: naming the file and row, where a name is unknown, both are the same, or no path joins them.
    """
    found: list[tuple[int, ...]] = []
    for row, source, target in _pairs(Path(path), "queries"):
        if row == 1 and (source, target) == ("source", "target") and source not in (graph.names or ()):
            continue  # the columns' names
        try:
            if source == target:
                raise InputError(f"target: is the source {source} itself; leave it out")
            found.append(graph.shortest_path(graph.number(source), graph.number(target)))
        except InputError as error:
            raise InputError(f"{path}, row {row}: {error}") from error
    if not found:
        raise InputError(f"{path}: has no queries; give rows of source,target")
    return tuple(found)


def _pairs(path: Path, what: str) -> list[tuple[int, str, str]]:
    """Rows (number, first, second)."""
    if not path.is_file():
        raise InputError(f"{what}: there is no file {path}; give a text, Arrow or Parquet file of two columns")
    if path.suffix.lower() in _ARROW:
        return _table_pairs(path)
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text ({error.reason}); give rows of two names") from error
    for row, line in enumerate(lines, 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        if len(words) != 2:
            raise InputError(f"{path}, row {row}: has {len(words)} words; give two names")
        found.append((row, words[0], words[1]))
    return found


def _table_pairs(path: Path) -> list[tuple[int, str, str]]:
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet as pq

    try:
        parquet = path.suffix.lower() in (".parquet", ".pq")
        table = pq.read_table(path) if parquet else pyarrow.feather.read_table(path, memory_map=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}); write it again") from error
    if table.num_columns < 2:
        raise InputError(f"{path}: has {table.num_columns} columns; give two with the names of nodes")
    first, second = (table.column(number).to_pylist() for number in (0, 1))
    for row, pair in enumerate(zip(first, second, strict=True), 1):
        if None in pair:
            raise InputError(f"{path}, row {row}: a name is missing; give two names")
    return [(row, str(u), str(v)) for row, (u, v) in enumerate(zip(first, second, strict=True), 1)]
