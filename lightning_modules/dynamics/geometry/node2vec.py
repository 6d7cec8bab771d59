"""Embeddings trained on a graph's edges alone, without any layer between: the simplest memory that becomes geometric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_modules.dynamics.geometry.recall import neighbour_recall
from lightning_modules.dynamics.geometry.spectrum import transition_matrix
from lightning_modules.errors import InputError
from lightning_modules.sequence.graphs import Graph

Array = np.ndarray


@dataclass(frozen=True)
class Node2VecFit:
    """One graph's embeddings.

    Args:
        v: V [n, m].
        c: C [n, n] of V.
        history: (step, V at that step), the start included.
        learned: updates after which all edges are recalled for the first time, from 400 on to the next multiple of 400; None: never.
    """

    v: Array
    c: Array
    history: list[tuple[int, Array]]
    learned: int | None


class Node2VecSpectral:
    """V <- V + lr C V, ascent on J = sum_i mean_{j next to i} log softmax(V V^T)_ij; tied, one hop, full softmax.

    C = (R - P) + (R - P)^T with P the softmax of each row and R the transition matrix; C V is the gradient. Numbers are float64.

    Args:
        m: dimensions, which may be more than the graph has nodes.
        lr: step size.
        steps: updates.

    Raises:
        InputError: a number below 1, or a rate that is not positive.

    Example:
        >>> from lightning_modules.sequence.graphs import cycle
        >>> Node2VecSpectral(steps=10).fit(cycle(15)).v.shape
        (15, 100)

    Source: arXiv 2510.26745, section 5.
    """

    def __init__(self, m: int = 100, lr: float = 0.01, steps: int = 10_000) -> None:
        if m < 1 or steps < 1:
            raise InputError(f"m, steps: {m}, {steps}; give 1 or more of each")
        if not lr > 0:
            raise InputError(f"lr: is {lr}; give a number above 0")
        self._m, self._lr, self._steps = m, lr, steps

    def fit(self, graph: Graph, seed: int = 7, marks: Sequence[int] = ()) -> Node2VecFit:
        """Lay one graph out; arguments as of `fit_many`."""
        return self.fit_many([graph], [seed], marks)[0]

    def fit_many(self, graphs: Sequence[Graph], seeds: Sequence[int], marks: Sequence[int] = ()) -> list[Node2VecFit]:
        """Lay graphs out together, each from standard normal numbers of its seed.

        Smaller graphs are filled up with nodes that nothing leads to, which moves none of the others.

        Args:
            graphs: connected ones.
            seeds: one of each.
            marks: steps at which V is kept.

        Raises:
            InputError: a graph that is not connected.
        """
        size = max(graph.n for graph in graphs)
        r, v = torch.zeros(len(graphs), size, size).double(), torch.zeros(len(graphs), size, self._m).double()
        absent = torch.zeros(len(graphs), 1, size, dtype=torch.bool)
        for row, (graph, seed) in enumerate(zip(graphs, seeds, strict=True)):
            n = graph.n
            r[row, :n, :n] = torch.from_numpy(transition_matrix(graph))
            v[row, :n] = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, self._m)))
            absent[row, :, n:] = True
        padded = bool(absent.any())
        present = (~absent).transpose(1, 2).double()
        kept = {0: v.clone()}
        learned, waiting = torch.full((len(graphs),), -1), set(range(len(graphs)))
        for step in range(1, self._steps + 1):
            p = _softmax(v, absent if padded else None)
            difference = r - (p * present if padded else p)
            v = torch.baddbmm(v, difference + difference.transpose(1, 2), v, alpha=self._lr)
            for row in sorted(waiting) if step <= _CLOSELY or step % _CLOSELY == 0 else ():
                if neighbour_recall(v[row] @ v[row].T, r[row]) == 1.0:
                    learned[row] = step
                    waiting.discard(row)
            if step in marks:
                kept[step] = v.clone()
        c = gradient_matrix(v, r, absent)
        kept[self._steps] = v
        return [
            Node2VecFit(
                v[row, : graph.n].numpy(),
                c[row, : graph.n, : graph.n].numpy(),
                [(step, past[row, : graph.n].numpy()) for step, past in sorted(kept.items())],
                int(learned[row]) if row not in waiting else None,
            )
            for row, graph in enumerate(graphs)
        ]


_CLOSELY = 400
"""Up to this step recall is looked at after each, then after every so many."""


def gradient_matrix(v: Tensor, r: Tensor, absent: Tensor | None = None) -> Tensor:
    """C [..., n, n] of V [..., n, m] and R [..., n, n]."""
    difference = r - _softmax(v, absent)
    if absent is not None:
        difference = difference * (~absent).transpose(-2, -1)
    return difference + difference.transpose(-2, -1)


def objective(v: Tensor, r: Tensor) -> Tensor:
    """J of V [n, m] and R [n, n]."""
    return (r * (v @ v.T).log_softmax(-1)).sum()


def _softmax(v: Tensor, absent: Tensor | None) -> Tensor:
    scores = v @ v.transpose(-2, -1)
    if absent is not None:
        scores = scores.masked_fill(absent, -torch.inf)
    return scores.softmax(-1)
