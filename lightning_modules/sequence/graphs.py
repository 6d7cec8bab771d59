"""Graphs to be memorised: stars of paths and of trees, cycles and grids; `graph_files` reads a person's own."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lightning_modules.errors import InputError

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected graph whose edges are written in one of their directions.

    Args:
        n: nodes, 0 to n - 1.
        edges: [E, 2] int64, each edge once: parent and child where there is a root, else as they were given.
        root: where the arms begin; None: there are none.
        arms: node paths from the root to a leaf, both included.
        names: of the nodes, for graphs read from a file.

    Raises:
        InputError: an edge whose end is no node, from a node to itself, or given twice.
    """

    n: int
    edges: Array
    root: int | None = None
    arms: tuple[tuple[int, ...], ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        edges = self.edges
        if edges.ndim != 2 or edges.shape[1:] != (2,) or not len(edges):
            raise InputError(f"edges: have shape {list(edges.shape)}; give [E, 2] with one edge or more")
        if edges.min() < 0 or edges.max() >= self.n:
            wrong = edges.min() if edges.min() < 0 else edges.max()
            raise InputError(f"edges: name node {wrong} of {self.n}; give numbers from 0 to {self.n - 1}")
        ends = np.sort(edges, 1)
        if (ends[:, 0] == ends[:, 1]).any():
            raise InputError("edges: one goes from a node to itself; leave it out")
        if len(np.unique(ends, axis=0)) < len(ends):
            raise InputError("edges: one is given twice; leave out its copies")

    @cached_property
    def neighbours(self) -> tuple[Array, ...]:
        """Of each node, in ascending order."""
        both = np.concatenate([self.edges, self.edges[:, ::-1]])
        both = both[np.lexsort((both[:, 1], both[:, 0]))]
        return tuple(np.split(both[:, 1], np.cumsum(np.bincount(both[:, 0], minlength=self.n))[:-1]))

    def adjacency(self) -> Array:
        """[n, n] float64 of 0 and 1, symmetric."""
        found = np.zeros((self.n, self.n))
        found[self.edges[:, 0], self.edges[:, 1]] = found[self.edges[:, 1], self.edges[:, 0]] = 1
        return found

    def parents(self, source: int) -> Array:
        """The node [n] before each on a shortest path from `source`; -1 for the source and what it cannot reach.

        Of several shortest paths it is the one whose nodes come first.
        """
        return self._search(source)[0]

    def levels(self, source: int) -> Array:
        """Distance [n] from `source`; -1 where there is no path."""
        return self._search(source)[1]

    def _search(self, source: int) -> tuple[Array, Array]:
        """Parents and levels [n] of a breadth-first search."""
        parents, levels = np.full(self.n, -1), np.full(self.n, -1)
        levels[source] = 0
        waiting = deque([source])
        while waiting:
            node = waiting.popleft()
            for other in self.neighbours[node]:
                if levels[other] < 0:
                    levels[other], parents[other] = levels[node] + 1, node
                    waiting.append(int(other))
        return parents, levels

    def shortest_path(self, source: int, target: int) -> tuple[int, ...]:
        """Nodes from `source` to `target`, both included.

        Raises:
            InputError: there is no path.
        """
        return _walk(self, self.parents(source), source, target)

    def distances(self) -> Array:
        """Edges [n, n] int64 on a shortest path between every two nodes; -1 where there is none."""
        found = np.full((self.n, self.n), -1)
        reached = np.eye(self.n, dtype=bool)
        adjacency, seen, length = self.adjacency() > 0, reached.copy(), 0
        while reached.any():
            found[reached] = length
            reached = (reached.astype(np.float32) @ adjacency > 0) & ~seen
            seen |= reached
            length += 1
        return found

    def check_connected(self) -> None:
        """Refuse a graph in parts.

        Raises:
            InputError: naming a node that has no edge, or that cannot be reached from node 0.
        """
        for node, found in enumerate(self.neighbours):
            if not len(found):
                raise InputError(f"graph: node {self.name(node)} has no edge; leave it out or give it one")
        apart = np.flatnonzero(self.parents(0) < 0)[1:]
        if len(apart):
            raise InputError(
                f"graph: node {self.name(int(apart[0]))} is not connected with {self.name(0)}; give one connected graph"
            )

    def name(self, node: int) -> str:
        """What a node is called."""
        return self.names[node] if self.names else str(node)

    def number(self, name: str) -> int:
        """The node of a name.

        Raises:
            InputError: there is none.
        """
        if name not in self._numbers:
            raise InputError(f"node: the graph has none called {name!r}; give one of its edges' ends")
        return self._numbers[name]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {self.name(node): node for node in range(self.n)}


def path_star(arms: int, length: int, seed: int | None = None) -> Graph:
    """G(d, l): d paths of l nodes that share their first one, the root; 1 + d (l - 1) nodes.

    Args:
        arms: d.
        length: l, nodes of a path, the root counted.
        seed: of a random renumbering of the nodes; None: the root is 0 and arms are numbered one after the other.

    Raises:
        InputError: fewer than 2 arms or 3 nodes.

    Source: arXiv 2403.06963; arXiv 2510.26745.
    """
    _check_star(arms, length)
    numbers = np.arange(1, 1 + arms * (length - 1)).reshape(arms, length - 1)
    paths = np.concatenate([np.zeros((arms, 1), np.int64), numbers], 1)
    return _rooted(paths, seed)


def tree_star(arms: int, length: int, branch: int = 2, seed: int | None = None) -> Graph:
    """Complete trees in place of paths: below the root d trees, all of whose inner nodes have `branch` children.

    Its `arms` are all paths from the root to a leaf, d branch^(l - 2) of them; with branch 1 it is a path star.

    Args:
        arms: d.
        length: l, nodes from the root to a leaf, both counted.
        branch: children of an inner node.
        seed: as of `path_star`.

    Raises:
        InputError: fewer than 2 arms, 3 nodes or 1 child.
    """
    _check_star(arms, length)
    if branch < 1:
        raise InputError(f"branch: is {branch}; give 1 or more")
    leaves, depth = arms * branch ** (length - 2), 1
    columns, first = [np.zeros(leaves, np.int64)], 1
    while depth < length:
        count = arms * branch ** (depth - 1)
        columns.append(first + np.repeat(np.arange(count), leaves // count))
        first, depth = first + count, depth + 1
    return _rooted(np.stack(columns, 1), seed)


def cycle(n: int) -> Graph:
    """A ring of n nodes, each joined to the next.

    Raises:
        InputError: fewer than 3 nodes.
    """
    if n < 3:
        raise InputError(f"n: a cycle of {n} nodes; give 3 or more")
    return Graph(n, np.stack([np.arange(n), (np.arange(n) + 1) % n], 1))


def grid(rows: int, columns: int) -> Graph:
    """A rectangle of nodes, numbered row by row, each joined to its neighbours to the right and below.

    Raises:
        InputError: fewer than 2 nodes or a number below 1.
    """
    if rows < 1 or columns < 1 or rows * columns < 2:
        raise InputError(f"rows, columns: a grid of {rows} x {columns}; give 2 nodes or more")
    numbers = np.arange(rows * columns).reshape(rows, columns)
    right = np.stack([numbers[:, :-1].ravel(), numbers[:, 1:].ravel()], 1)
    below = np.stack([numbers[:-1].ravel(), numbers[1:].ravel()], 1)
    return Graph(rows * columns, np.concatenate([right, below]))


def irregular(nodes: int, edges: int, seed: int = 16) -> Graph:
    """A random connected graph: each node is joined to an earlier one, then pairs are added.

    Raises:
        InputError: fewer than 2 nodes, too few edges to connect them, or more than there are pairs.
    """
    if nodes < 2 or not nodes - 1 <= edges <= nodes * (nodes - 1) // 2:
        raise InputError(f"edges: {edges} between {nodes} nodes; give {nodes - 1} to {nodes * (nodes - 1) // 2}")
    generator = np.random.default_rng(seed)
    found = {(int(generator.integers(node)), node) for node in range(1, nodes)}
    while len(found) < edges:
        u, v = sorted(generator.choice(nodes, 2, replace=False).tolist())
        found.add((u, v))
    return Graph(nodes, np.array(sorted(found)))


def rooted(graph: Graph, root: int) -> Graph:
    """The same graph with arms: shortest paths from the root to every other node of degree 1, edges pointing outwards.

    Raises:
        InputError: there is no such leaf, or one cannot be reached.
    """
    leaves = [node for node in range(graph.n) if len(graph.neighbours[node]) == 1 and node != root]
    if not leaves:
        raise InputError("root: no arm ends at a node of one edge; give queries of source and target instead")
    parents, steps = graph.parents(root), graph.levels(root)
    edges = graph.edges.copy()
    turned = steps[edges[:, 0]] > steps[edges[:, 1]]
    edges[turned] = edges[turned, ::-1]
    return Graph(graph.n, edges, root, tuple(_walk(graph, parents, root, leaf) for leaf in leaves), graph.names)


def _check_star(arms: int, length: int) -> None:
    if arms < 2:
        raise InputError(f"arms: {arms}; give 2 or more")
    if length < 3:
        raise InputError(f"length: {length} nodes from root to leaf; give 3 or more")


def _rooted(paths: Array, seed: int | None) -> Graph:
    """A tree of root-to-leaf paths [A, l]."""
    n = int(paths.max()) + 1
    if seed is not None:
        paths = np.random.default_rng([seed, 0x67]).permutation(n)[paths]
    steps = np.stack([paths[:, :-1].ravel(), paths[:, 1:].ravel()], 1)
    _, first = np.unique(steps, axis=0, return_index=True)
    arms = tuple(tuple(path) for path in paths.tolist())
    return Graph(n, steps[np.sort(first)], arms[0][0], arms)


def _walk(graph: Graph, parents: Array, root: int, leaf: int) -> tuple[int, ...]:
    path = [leaf]
    while path[-1] != root:
        path.append(int(parents[path[-1]]))
        if path[-1] < 0:
            raise InputError(
                f"graph: no path leads from {graph.name(root)} to {graph.name(leaf)}; leave one of them out"
            )
    return tuple(reversed(path))
