"""How many of a graph's edges a table of scores has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lightning_modules.errors import InputError

Array = np.ndarray

_ROWS = 1024


@torch.no_grad()
def top_k_recall(scores: Callable[[Tensor], Tensor], sources: Array, targets: Array) -> float:
    """Mean over sources, each with k targets, of the share of these among its k largest scores.

    Args:
        scores: maps nodes [b] to scores of all nodes [b, n].
        sources: [E], sorted; pairs (source, target) are distinct.
        targets: [E].

    Raises:
        InputError: no edges.
    """
    if not len(sources):
        raise InputError("sources: there is no edge; give one or more")
    nodes, first, counts = np.unique(sources, return_index=True, return_counts=True)
    total = 0.0
    for k in np.unique(counts):
        chosen = np.flatnonzero(counts == k)
        for start in range(0, len(chosen), _ROWS):
            rows = chosen[start : start + _ROWS]
            wanted = targets[first[rows][:, None] + np.arange(k)]  # [b, k]
            found = scores(torch.from_numpy(nodes[rows]))
            top = torch.zeros_like(found, dtype=torch.bool).scatter_(1, found.topk(int(k), 1).indices, True)
            hits = top.gather(1, torch.from_numpy(wanted).to(found.device))
            total += float(hits.float().mean(1).sum())
    return total / len(nodes)


def neighbour_recall(scores: Tensor, r: Tensor) -> float:
    """Mean over nodes of the share of their k neighbours among their k largest scores, the nodes themselves left out.

    Args:
        scores: [n, n], of v as a neighbour of u in row u.
        r: [n, n], above 0 where there is an edge; nodes without any are no candidates and do not count.
    """
    edges = r > 0
    degrees = edges.sum(1)
    there = degrees > 0
    scores = scores.clone().fill_diagonal_(-torch.inf)
    scores[:, ~there] = -torch.inf
    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(1)
    hits = (edges & (ranks < degrees[:, None])).sum(1)
    return float((hits[there] / degrees[there]).mean())
