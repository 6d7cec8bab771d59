"""A memory that is a table: fixed embeddings without any order, and a matrix that maps each to its neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from lightning_modules.dynamics.geometry.recall import neighbour_recall
from lightning_modules.dynamics.geometry.spectrum import transition_matrix
from lightning_modules.errors import InputError
from lightning_modules.sequence.graphs import Graph

Array = np.ndarray


class AssociativeMemory:
    """score(u, v) = Phi(v)^T W Phi(u) with frozen Phi ~ N(0, 1 / dim); W goes up sum_u mean_{v next to u} log softmax(score).

    Args:
        dim: of the embeddings; the more, the nearer to orthogonal.
        lr: step size.
        seed: of Phi.

    Raises:
        InputError: a number that is not positive.

    Source: arXiv 2510.26745, section 3.
    """

    def __init__(self, dim: int = 512, lr: float = 5.0, seed: int = 0) -> None:
        if dim < 1 or not lr > 0:
            raise InputError(f"dim, lr: {dim}, {lr}; give positive numbers")
        self._dim, self._lr, self._seed = dim, lr, seed

    def fit(self, graph: Graph, steps: int = 1) -> list[float]:
        """Train W from 0 on all edges at once; returns recall before the first step and after each.

        Recall is the mean over nodes of the share of their k neighbours among their k largest scores, themselves left out.

        Raises:
            InputError: the graph is not connected.
        """
        r = transition_matrix(graph)
        phi = np.random.default_rng(self._seed).standard_normal((graph.n, self._dim)) / math.sqrt(self._dim)
        self.w = np.zeros((self._dim, self._dim))
        found = []
        for step in range(steps + 1):
            scores = phi @ self.w.T @ phi.T  # [u, v]
            found.append(neighbour_recall(torch.from_numpy(scores), torch.from_numpy(r)))
            if step < steps:
                p = np.exp(scores - scores.max(1, keepdims=True))
                p /= p.sum(1, keepdims=True)
                self.w += self._lr * phi.T @ (r - p).T @ phi
        return found


@dataclass(frozen=True)
class Complexity:
    """What a memory of a graph costs.

    Args:
        associative_bits: |E| log2 |V| for one direction of the edges, twice that for both.
        associative_norm: sqrt |E|, l2 norm of W, sqrt 2 times that for both directions.
        geometric_bits: |V| m log2 cells.
        geometric_norm: sqrt |V|, l2 norm of the embeddings, sqrt 2 times that where input and output embeddings differ.
    """

    associative_bits: float
    associative_norm: float
    geometric_bits: float
    geometric_norm: float


def memory_complexity(graph: Graph, m: int, cells: int, both: bool = False, tied: bool = True) -> Complexity:
    """Bits and norms of the two kinds of memory.

    Args:
        graph: to be kept.
        m: dimensions of a layout.
        cells: a dimension is divided into.
        both: whether both directions of the edges are kept.
        tied: whether input and output embeddings are the same.

    Raises:
        InputError: less than 1 dimension or 2 cells.

    Source: arXiv 2510.26745, section 4.
    """
    if m < 1 or cells < 2:
        raise InputError(f"m, cells: {m}, {cells}; give 1 dimension and 2 cells or more")
    times = 2 if both else 1
    edges = times * len(graph.edges)
    return Complexity(
        edges * math.log2(graph.n),
        math.sqrt(edges),
        graph.n * m * math.log2(cells),
        math.sqrt(graph.n * (1 if tied else 2)),
    )
