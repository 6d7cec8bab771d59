"""Cosines of embeddings beside what the graph says: arm against arm, and pair against distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_modules.errors import InputError

Array = np.ndarray


@dataclass(frozen=True)
class ArmCosines:
    """Cosines of arms with each other.

    Args:
        table: [A, A].
    """

    table: Array

    @property
    def diagonal(self) -> float:
        """Mean of an arm with itself."""
        return float(np.diag(self.table).mean())

    @property
    def off_diagonal(self) -> float:
        """Mean of an arm with another; NaN where there is one arm."""
        count = len(self.table)
        return float((self.table.sum() - np.trace(self.table)) / (count * (count - 1))) if count > 1 else float("nan")

    @property
    def nearest(self) -> float:
        """Share of rows whose largest cosine is on the diagonal."""
        return float((self.table.argmax(1) == np.arange(len(self.table))).mean())


def unit(vectors: Array) -> Array:
    """Rows [n, m] of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Array = vectors / np.where(lengths > 0, lengths, 1)
    return found


def end_cosines(vectors: Array, leaves: Array, firsts: Array) -> ArmCosines:
    """Cosines of the last node of each arm with the first after the root of each.

    Args:
        vectors: [n, m].
        leaves: [A] nodes.
        firsts: [A] nodes, of the same arms.

    Raises:
        InputError: no arms.
    """
    if not len(leaves):
        raise InputError("leaves: there is no arm; give a graph with arms")
    rows = unit(np.asarray(vectors, np.float64))
    return ArmCosines(rows[leaves] @ rows[firsts].T)


def path_cosines(vectors: Array, arms: Sequence[Sequence[int]]) -> ArmCosines:
    """Mean cosines of all nodes of an arm with all of another, the root left out; of an arm with itself, of distinct nodes.

    Args:
        vectors: [n, m].
        arms: from the root to a leaf.

    Raises:
        InputError: no arms, or one of fewer than three nodes.
    """
    if not arms or min(map(len, arms)) < 3:
        raise InputError("arms: give one or more, of three nodes or more")
    rows = unit(np.asarray(vectors, np.float64))
    sums = np.stack([rows[list(arm[1:])].sum(0) for arm in arms])
    counts = np.array([len(arm) - 1 for arm in arms], float)
    table = sums @ sums.T
    own = np.array([(rows[list(arm[1:])] ** 2).sum() for arm in arms])
    pairs = np.outer(counts, counts)
    np.fill_diagonal(table, np.diag(table) - own)
    np.fill_diagonal(pairs, counts * (counts - 1))
    return ArmCosines(table / pairs)


def edge_cosine(vectors: Array, edges: Array) -> float:
    """Mean cosine over edges [E, 2]: how geometric a memory is."""
    rows = unit(np.asarray(vectors, np.float64))
    return float((rows[edges[:, 0]] * rows[edges[:, 1]]).sum(1).mean())


def distance_profile(vectors: Array, distances: Array) -> tuple[Array, Array]:
    """Mean cosine of the pairs of nodes at each distance.

    Args:
        vectors: [n, m].
        distances: [n, n] in edges; -1 where there is no path.

    Returns:
        Distances [K] from 1 up that occur, and mean cosines [K].
    """
    rows = unit(np.asarray(vectors, np.float64))
    above = np.triu(distances, 1)
    at = np.unique(above[above > 0])
    cosines = rows @ rows.T
    return at, np.array([cosines[above == distance].mean() for distance in at])


def distance_correlation(vectors: Array, distances: Array) -> float:
    """Spearman's rank correlation of cosine distance with graph distance, over the pairs of nodes that a path joins.

    Raises:
        InputError: all pairs are at one distance.
    """
    from scipy.stats import spearmanr

    rows = unit(np.asarray(vectors, np.float64))
    above = np.triu(distances, 1) > 0
    lengths = distances[above]
    if not len(lengths) or lengths.min() == lengths.max():
        raise InputError("distances: all pairs of nodes are equally far; give a graph of two distances or more")
    apart = np.round(1 - (rows @ rows.T)[above], 9)  # what differs by rounding is a tie
    return float(spearmanr(apart, lengths).statistic)
