"""Batches of edges and paths of one graph, determined by the number of the step, for `InWeightsModule`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import Choice, IntUniform
from lightning_modules.lightning_import import pl
from lightning_modules.sequence.graph_files import from_edge_list, read_queries
from lightning_modules.sequence.graphs import Graph, cycle, grid, irregular, path_star, rooted, tree_star
from lightning_modules.sequence.path_tasks import SPLITS, TARGETS, Directions, InWeightsDataset, SplitBy, Target

Batch = dict[str, Tensor]
"""edges [P, K, 2], pairs of a node and one of its neighbours; paths [P, T], questions with their answers. One may be missing."""

GRAPHS = ("path_star", "tree_star", "cycle", "grid", "irregular")
_VALIDATED = 512


class InWeightsBatches(IterableDataset[Batch]):
    """Endless batches: edges and training paths drawn with replacement, those of step k from (seed, k) alone.

    Args:
        dataset: of a graph.
        edges: of a batch; 0: every edge, in each.
        paths: of a batch; 0: none.
        seed: of the draws.
    """

    def __init__(self, dataset: InWeightsDataset, edges: int, paths: int, seed: int) -> None:
        self._dataset, self._edges, self._seed = dataset, edges, seed
        self._paths = paths if len(dataset.train) else 0

    def __iter__(self) -> Iterator[Batch]:
        """Begin with step 0."""
        step = 0
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        state = int(np.random.SeedSequence([self._seed, step]).generate_state(1)[0])
        generator, data = torch.Generator().manual_seed(state), self._dataset
        edges = data.edges
        if self._edges:
            edges = edges[torch.randint(len(edges), (self._edges,), generator=generator)]
        if not self._paths:
            return {"edges": edges[:, None]}
        rows = data.train[torch.randint(len(data.train), (self._paths,), generator=generator)]
        if not self._edges:  # of no common number of rows: these batches cannot be dealt out
            return {"edges": edges[:, None], "paths": data.paths[rows]}
        return {"edges": edges.view(self._paths, -1, 2), "paths": data.paths[rows]}


class InWeightsData(pl.LightningDataModule):
    """A graph with its edge and path examples.

    Args:
        graph: "path_star", "tree_star", "cycle", "grid", "irregular", or a file of edges as `from_edge_list` reads it.
        arms: of a star; rows of a grid; edges of an irregular graph.
        length: nodes of an arm, the root counted; nodes of a cycle or an irregular graph; columns of a grid.
        branch: children of a tree star's inner nodes.
        root: of a graph from a file: the node where its arms begin.
        queries: a file of `source,target` rows that are asked in place of the arms.
        pauses: tokens between question and answer.
        directions: of edge examples: "both", "forward" (from the root outwards; of a file without root as written), "backward".
        target: "path", "reverse", or "hardest": the first node after the root alone.
        train_fraction: of the paths; the others are held out.
        split_by: "leaf", or "first": paths are held out by their first node after the root.
        edges: examples of a batch; 0: every edge in each.
        paths: examples of a batch, a divisor of `edges`; 0: none.
        seed: of the nodes' numbers, the split and the batches.

    Raises:
        InputError: an unknown graph or file, a number out of range, a batch that does not divide.

    Example:
        shiftlab train --method lightning_modules.sequence.in_weights:InWeightsModule \
            --dataset lightning_modules.sequence.in_weights_data:InWeightsData --steps 400 --run runs/star
    """

    def __init__(
        self,
        graph: str = "path_star",
        arms: int = 100,
        length: int = 5,
        branch: int = 2,
        root: str = "",
        queries: str = "",
        pauses: Annotated[int, IntUniform(0, 8)] = 2,
        directions: Directions = "both",
        target: Annotated[Target, Choice(TARGETS)] = "path",
        train_fraction: float = 0.75,
        split_by: Annotated[SplitBy, Choice(SPLITS)] = "leaf",
        edges: int = 512,
        paths: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("edges", edges), ("paths", paths)):
            if value < 0:
                raise InputError(f"{name}: is {value}; give 0 or more")
        if edges and paths and edges % paths:
            raise InputError(f"paths: {paths} do not divide {edges} edges; give a divisor")
        self._edges, self._paths, self._seed = edges, paths, seed
        found = read_graph(graph, arms, length, branch, root, seed)
        answers = read_queries(queries, found) if queries else ()
        self.dataset = InWeightsDataset(
            found, pauses, directions, target, train_fraction, split_by, seed, queries=answers
        )
        self.batches = InWeightsBatches(self.dataset, edges, paths, seed)

    def train_dataloader(self) -> InWeightsBatches:
        """Endless batches; nothing is loaded by other processes, since all of it is in memory."""
        return self.batches

    def val_dataloader(self) -> DataLoader[Batch]:
        """The paths held out; all edges where there are no paths to hold out."""
        data = self.dataset
        batches: Any = [{"paths": data.paths[rows]} for rows in torch.split(data.held_out, _VALIDATED)]
        if not len(data.held_out):
            batches = [{"edges": part[:, None]} for part in torch.split(data.edges, _VALIDATED)]
        return DataLoader(batches, batch_size=None)

    def probe_batches(self, count: int) -> list[Batch]:
        """The first edges, and as many of the training paths as are left to `count`, for probes of the training."""
        edges = self.dataset.edges[:count]
        found: list[Batch] = [{"edges": edges[:, None]}]
        rows = self.dataset.train[: count - len(edges)] if self._paths else self.dataset.train[:0]
        return found + ([{"paths": self.dataset.paths[rows]}] if len(rows) else [])


def read_graph(graph: str, arms: int, length: int, branch: int, root: str, seed: int) -> Graph:
    """Make or read the graph that `InWeightsData` is told of.

    Raises:
        InputError: no such kind of graph and no such file.
    """
    if graph == "path_star":
        return path_star(arms, length, seed)
    if graph == "tree_star":
        return tree_star(arms, length, branch, seed)
    if graph in GRAPHS:
        found = {"cycle": lambda: cycle(length), "grid": lambda: grid(arms, length)}.get(
            graph, lambda: irregular(length, arms)
        )()
        return rooted(found, found.number(root)) if root else found
    if not Path(graph).is_file():
        raise InputError(f"graph: {graph!r} is no file; give one of edges, or {', '.join(GRAPHS)}")
    return from_edge_list(graph, root)
