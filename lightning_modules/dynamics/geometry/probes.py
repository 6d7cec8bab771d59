"""Probes that watch a memory of a graph while it forms: which edges it has, and whether arms point their own ways."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from lightning_modules.dynamics.geometry.cosines import edge_cosine, end_cosines
from lightning_modules.dynamics.geometry.recall import top_k_recall
from lightning_modules.dynamics.probe import Probe, ProbeRows
from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl


class _OfGraph(Probe):
    """Measures before the first step too, and needs no losses of examples.

    Args:
        every: steps between measurements.
    """

    needs_losses: ClassVar[bool] = False

    def __init__(self, every: int = 20) -> None:
        super().__init__(every, 1)

    def begin(self, trainer: pl.Trainer, module: pl.LightningModule) -> ProbeRows | None:
        """Measure what the training begins with."""
        return self.measure(trainer, module, trainer.global_step)


class EdgeRecall(_OfGraph):
    """Streams `edge_recall`, see `top_k_recall`, of a module that has `hop_scores`, on the graph of its data module.

    Args:
        every: steps between measurements.
    """

    name: ClassVar[str] = "edge-recall"

    def measure(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> ProbeRows:
        """Measure after a step."""
        dataset = _dataset(self, trainer, module, "hop_scores")
        watched: Any = module
        value = top_k_recall(watched.hop_scores, *dataset.hop_targets())
        return ProbeRows(self.name, step, [("edge_recall", "", value)])


class GeometryProbe(_OfGraph):
    """Streams cosines of a module's `node_vectors`, on the graph of its data module.

    `edge_cosine`, the mean over edges, and where the graph has arms, over those held out: `diagonal`, mean cosine of an arm's leaf
    with its own first node after the root, `off_diagonal`, with the others', and `nearest`, share of leaves nearest their own.

    Args:
        every: steps between measurements.
    """

    name: ClassVar[str] = "geometry"

    def measure(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> ProbeRows:
        """Measure after a step."""
        dataset = _dataset(self, trainer, module, "node_vectors")
        watched: Any = module
        vectors = np.asarray(watched.node_vectors().cpu().double())
        found = [("edge_cosine", "", edge_cosine(vectors, dataset.graph.edges))]
        leaves, firsts = dataset.held_out_ends()
        if len(leaves):
            arms = end_cosines(vectors, leaves, firsts)
            found.append(("diagonal", "", arms.diagonal))
            found.append(("nearest", "", arms.nearest))
            if len(leaves) > 1:
                found.append(("off_diagonal", "", arms.off_diagonal))
        return ProbeRows(self.name, step, found)


def _dataset(probe: Probe, trainer: pl.Trainer, module: pl.LightningModule, method: str) -> Any:
    found = getattr(getattr(trainer, "datamodule", None), "dataset", None)
    if not (hasattr(module, method) and hasattr(found, "graph")):
        raise InputError(
            f"probe {probe.name}: needs a module with {method} and data with a graph; train InWeightsModule on InWeightsData"
        )
    return found
