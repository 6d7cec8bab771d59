"""The eigenvectors of a graph that embeddings trained on its edges fall onto."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_modules.sequence.graphs import Graph

Array = np.ndarray

_SAME = 1e-8
"""Eigenvalues less apart are one."""


@dataclass(frozen=True)
class Spectrum:
    """Eigenvectors of -L in falling order of their eigenvalues.

    Args:
        values: [n].
        vectors: [n, n], one a column.
        groups: columns of each distinct eigenvalue.
    """

    values: Array
    vectors: Array
    groups: tuple[range, ...]

    @property
    def kept(self) -> int:
        """Columns of the first two groups: the constant direction and the Fiedler-like ones."""
        return self.groups[1].stop

    def energies(self, v: Array) -> Array:
        """|V^T e_i| [n] of embeddings V [n, m]."""
        found: Array = np.linalg.norm(v.T @ self.vectors, axis=0)
        return found

    def share(self, v: Array) -> float:
        """Share of |V|^2 in the first two groups."""
        squares = self.energies(v) ** 2
        return float(squares[: self.kept].sum() / squares.sum())


def transition_matrix(graph: Graph) -> Array:
    """R = D^-1 A [n, n]: each row spread evenly over the node's neighbours.

    Raises:
        InputError: the graph is not connected.
    """
    graph.check_connected()
    adjacency = graph.adjacency()
    found: Array = adjacency / adjacency.sum(1, keepdims=True)
    return found


def laplacian_spectrum(graph: Graph) -> Spectrum:
    """Decompose -L = -((I - R) + (I - R)^T).

    Raises:
        InputError: the graph is not connected.

    Source: arXiv 2510.26745, section 5.
    """
    r = transition_matrix(graph)
    values, vectors = np.linalg.eigh(r + r.T - 2 * np.eye(graph.n))
    values, vectors = values[::-1], vectors[:, ::-1]
    starts = [0, *(np.flatnonzero(-np.diff(values) > _SAME) + 1).tolist(), graph.n]
    groups = tuple(range(a, b) for a, b in zip(starts, starts[1:], strict=False))
    return Spectrum(values, vectors, groups)
