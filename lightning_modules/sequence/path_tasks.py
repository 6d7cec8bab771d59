"""What is asked of a graph that is memorised in weights: every edge by itself, and paths named by their last node."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_modules.errors import InputError
from lightning_modules.sequence.graphs import Graph

Array = np.ndarray

Directions = Literal["both", "forward", "backward"]
Target = Literal["path", "reverse", "hardest"]
SplitBy = Literal["leaf", "first"]

DIRECTIONS, TARGETS, SPLITS = ("both", "forward", "backward"), ("path", "reverse", "hardest"), ("leaf", "first")
NOTHING = -1
"""Stands behind the end of paths shorter than others; it is neither read nor asked for."""


class InWeightsDataset:
    """Examples of one graph as integer tensors.

    Token i < n is node i; then come EDGE, PATH and PAUSE. An edge example is `[EDGE] u`, to be followed by one neighbour of u.
    A path example is `[PATH] leaf [PAUSE] x p`, to be followed by the root, v_1, ..., the leaf ("path"), the same in reverse
    order ("reverse"), or v_1 alone ("hardest"). Paths that answer queries are asked for by both ends: `[PATH] source target
    [PAUSE] x p`. Edges are all trained, whatever paths are held out.

    Args:
        graph: to be memorised.
        pauses: p, tokens between the question and its answer.
        directions: of the edge examples: "forward" from parent to child, "backward", or "both".
        target: what follows a path's question.
        train_fraction: of the paths; the others are held out.
        split_by: "leaf", or "first": what is held out is all paths through some of the root's neighbours.
        seed: of the split.
        queries: paths that are asked for by both ends, in place of the graph's arms.

    Attributes:
        edges: [E, 2], u and v of every edge example.
        paths: [A, P + L], the question and its answer.
        prefix: P.
        train, held_out: rows of `paths`.
        first: [A], the place of v_1 in the answer.

    Raises:
        InputError: an unknown option, a number out of range.

    Source: arXiv 2510.26745, section 2.
    """

    def __init__(
        self,
        graph: Graph,
        pauses: int = 2,
        directions: Directions = "both",
        target: Target = "path",
        train_fraction: float = 0.75,
        split_by: SplitBy = "leaf",
        seed: int = 0,
        queries: tuple[tuple[int, ...], ...] = (),
    ) -> None:
        for name, value, known in (
            ("directions", directions, DIRECTIONS),
            ("target", target, TARGETS),
            ("split_by", split_by, SPLITS),
        ):
            if value not in known:
                raise InputError(f"{name}: unknown {value!r}; choose from {', '.join(known)}")
        if pauses < 0:
            raise InputError(f"pauses: is {pauses}; give 0 or more")
        if not 0 < train_fraction <= 1:
            raise InputError(f"train_fraction: is {train_fraction}; give more than 0 and at most 1")
        self.graph, self.target = graph, target
        self.edge_token, self.path_token, self.pause_token = graph.n, graph.n + 1, graph.n + 2
        self.vocabulary = graph.n + 3
        forward = torch.from_numpy(graph.edges)
        given = {"forward": [forward], "backward": [forward.flip(1)], "both": [forward, forward.flip(1)]}
        self.edges = torch.cat(given[directions])
        routes = queries or graph.arms
        self.paths, self.prefix = self._written(routes, pauses, bool(queries))
        lengths = torch.tensor([len(route) for route in routes], dtype=torch.int64)
        self.first = {"path": torch.ones_like(lengths), "hardest": torch.zeros_like(lengths)}.get(target, lengths - 2)
        self.train, self.held_out = _split(routes, train_fraction, split_by, seed)

    @property
    def answer(self) -> int:
        """L, the longest answer."""
        return self.paths.shape[1] - self.prefix

    @property
    def context(self) -> int:
        """Longest sequence, the answer's last token included."""
        return max(2, self.paths.shape[1])

    def ask(self, *ends: str) -> Tensor:
        """The question [1, P] for a path: by the name of its leaf, or by source and target where queries are asked.

        Raises:
            InputError: a name that is no node's, or too few or too many of them.
        """
        if len(ends) != self._ends:
            raise InputError(f"ends: {len(ends)} names; give {'the leaf' if self._ends == 1 else 'source and target'}")
        nodes = [self.graph.number(name) for name in ends]
        pauses = [self.pause_token] * (self.prefix - 1 - len(nodes))
        return torch.tensor([[self.path_token, *nodes, *pauses]])

    def spell(self, answers: Tensor) -> list[list[str]]:
        """Names of the nodes in answers [n, L]; what is no node has a name in capitals."""
        words = {self.edge_token: "EDGE", self.path_token: "PATH", self.pause_token: "PAUSE", NOTHING: "NOTHING"}
        return [[words.get(token) or self.graph.name(token) for token in answer] for answer in answers.tolist()]

    def hop_targets(self) -> tuple[Array, Array]:
        """The edge examples as (sources [E], targets [E]), sorted by source."""
        pairs = self.edges.numpy()
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        return pairs[:, 0], pairs[:, 1]

    def held_out_ends(self) -> tuple[Array, Array]:
        """Leaf and v_1 of the paths that are held out, one for each v_1; of all paths where none is held out."""
        rows = self.held_out if len(self.held_out) else self.train
        arms = list({self._routes[row][1]: self._routes[row] for row in rows.tolist()}.values())
        return np.array([arm[-1] for arm in arms], np.int64), np.array([arm[1] for arm in arms], np.int64)

    def _written(self, routes: tuple[tuple[int, ...], ...], pauses: int, both_ends: bool) -> tuple[Tensor, int]:
        self._routes, self._ends = routes, 1 + both_ends
        pause = [self.pause_token] * pauses
        rows = []
        for route in routes:
            ends = [route[0], route[-1]] if both_ends else [route[-1]]
            answer = {"path": list(route), "reverse": list(route[::-1]), "hardest": [route[1]]}[self.target]
            rows.append([self.path_token, *ends, *pause, *answer])
        prefix = 2 + both_ends + pauses
        longest = max(map(len, rows), default=prefix)
        whole = [row + [NOTHING] * (longest - len(row)) for row in rows]
        return torch.tensor(whole, dtype=torch.int64).reshape(len(rows), longest), prefix


def _split(routes: tuple[tuple[int, ...], ...], fraction: float, by: SplitBy, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out, each in ascending order."""
    groups = np.arange(len(routes))
    if by == "first" and routes:
        groups = np.unique([route[1] for route in routes], return_inverse=True)[1]
    count = int(groups.max()) + 1 if len(groups) else 0
    order = np.random.default_rng([seed, 0x73]).permutation(count)
    trained = np.isin(groups, order[: round(fraction * count)])
    if count and not trained.any():
        raise InputError(f"train_fraction: {fraction} of {count} paths is none; give more")
    return torch.from_numpy(np.flatnonzero(trained)), torch.from_numpy(np.flatnonzero(~trained))
