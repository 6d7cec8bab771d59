"""What the cells compute."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from jobs.claims import MetricRow, scalar_rows
from jobs.papers.geometric_memory.names import CURVE_STEPS, HEAT_MAPS, MARKS
from lightning_modules.dynamics.geometry.associative import AssociativeMemory, memory_complexity
from lightning_modules.dynamics.geometry.cosines import (
    distance_correlation,
    distance_profile,
    edge_cosine,
    end_cosines,
)
from lightning_modules.dynamics.geometry.node2vec import Node2VecSpectral, gradient_matrix, objective
from lightning_modules.dynamics.geometry.recall import neighbour_recall
from lightning_modules.dynamics.geometry.spectrum import laplacian_spectrum, transition_matrix
from lightning_modules.lightning_import import pl
from lightning_modules.sequence import in_context as reading
from lightning_modules.sequence.graphs import Graph, cycle, grid, irregular, path_star
from lightning_modules.sequence.in_weights import InWeightsModule
from lightning_modules.sequence.in_weights_data import InWeightsData
from lightning_modules.sequence.training import fit


class _Curve(pl.Callback):
    """Stores what is known while a cell trains."""

    def __init__(self, measure: Callable[[], dict[str, float]], every: int) -> None:
        self._measure, self._every = measure, every
        self.rows: list[MetricRow] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self._every == 0:
            self.rows += scalar_rows(self._measure(), trainer.global_step, "curve")


def _among(made: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Those of a cell's settings that a constructor takes."""
    return {name: value for name, value in values.items() if name in inspect.signature(made.__init__).parameters}


def trained(experiment: str, method: str, seed: int, values: dict[str, Any]) -> list[MetricRow]:
    """Train a decoder on a star; accuracies, edge recall and cosines at the end and on the way, and a heat-map's rows."""
    values = {**values, "seed": seed, "mixer": "mamba" if method == "mamba" else "attention"}
    module, data = InWeightsModule(**_among(InWeightsModule, values)), InWeightsData(**_among(InWeightsData, values))
    leaves, firsts = data.dataset.held_out_ends()

    def measure() -> dict[str, float]:
        arms = end_cosines(module.node_vectors().cpu().numpy(), leaves, firsts)
        known = module.measure(data.dataset)
        return known | {"diagonal": arms.diagonal, "off diagonal": arms.off_diagonal, "nearest": arms.nearest}

    every = min(values["steps"], max(CURVE_STEPS, values["steps"] // 40))
    curve = _Curve(measure, every)
    fit(module, data, values["steps"], [curve])
    found = curve.rows + scalar_rows(measure(), values["steps"])
    if seed == 0 and (experiment, method) in HEAT_MAPS and values.get("target", "path") == "path":
        table = end_cosines(module.node_vectors().numpy(), leaves, firsts).table
        for row, cosines in enumerate(table.tolist()):
            found += scalar_rows({f"column {column}": value for column, value in enumerate(cosines)}, row, "heat map")
    return found


def in_context(seed: int, values: dict[str, Any]) -> list[MetricRow]:
    """Train a decoder on stars in its input; accuracy at each place of the path on fresh ones, and of the whole path."""
    values = {**values, "seed": seed}
    module = reading.InContextModule(**_among(reading.InContextModule, values))
    data = reading.InContextData(**_among(reading.InContextData, values))
    fit(module, data, values["steps"])
    return scalar_rows(module.measure(data.validation))


def graph_of(name: str) -> Graph:
    """The small graphs, by name."""
    if name == "cycle":
        return cycle(15)
    if name == "star":
        return path_star(4, 5)
    return grid(4, 4) if name == "grid" else irregular(16, 20)


def node2vec(method: str, seed: int, graph: str, steps: int = 1) -> list[MetricRow]:
    """Lay a small graph out, or keep it as a table; recall, spectrum, energies on the way, and how far C V is from autograd."""
    chosen = graph_of(graph)
    if method == "associative":
        before, after = AssociativeMemory(seed=seed).fit(chosen, 1)
        return scalar_rows({"recall": before}, 0) + scalar_rows({"recall": after}, 1)
    spectrum = laplacian_spectrum(chosen)
    marks = [mark for mark in MARKS if mark <= steps]
    done = Node2VecSpectral(steps=steps).fit(chosen, seed, marks)
    r = torch.from_numpy(transition_matrix(chosen))
    distances = chosen.distances()
    found: list[MetricRow] = []
    for step, v in done.history:
        energies = spectrum.energies(v)
        known = {"share": spectrum.share(v), "recall": neighbour_recall(torch.from_numpy(v @ v.T), r)}
        known |= {"edge cosine": edge_cosine(v, chosen.edges), "correlation": distance_correlation(v, distances)}
        known |= {f"energy {i}": float(energy) for i, energy in enumerate(energies)}
        left = gradient_matrix(torch.from_numpy(v), r).numpy() @ spectrum.vectors
        known |= {f"left {i}": float(length) for i, length in enumerate(np.linalg.norm(left, axis=0))}
        found += scalar_rows(known, step)
    start = torch.from_numpy(done.history[0][1]).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(start, r), start)
    error = (gradient - gradient_matrix(start, r) @ start).detach().abs().max()
    once = {"gradient error": float(error), "kept": float(spectrum.kept)}
    once |= {f"eigenvalue {i}": float(value) for i, value in enumerate(spectrum.values)}
    if done.learned is not None:
        once["learned"] = float(done.learned)
    if graph == "cycle":
        known_values = np.sort(-2 + 2 * np.cos(2 * np.pi * np.arange(chosen.n) / chosen.n))[::-1]
        once["spectrum error"] = float(np.abs(spectrum.values - known_values).max())
    return found + scalar_rows(once)


def tiny(seed: int, graph: str, steps: int) -> list[MetricRow]:
    """Train a small transformer on all edges of a small graph at once; how its embeddings follow the graph's distances."""
    places = {"cycle": (0, 15), "star": (4, 5), "grid": (4, 4), "irregular": (20, 16)}
    arms, length = places[graph]
    kind = {"star": "path_star"}.get(graph, graph)
    data = InWeightsData(kind, arms, length, edges=0, paths=0, seed=seed)
    chosen = data.dataset.graph
    module = InWeightsModule(layers=1, width=32, lr=1e-2, path_weight=0.0, schedule="constant", warmup=0, seed=seed)
    distances = chosen.distances()

    def measure() -> dict[str, float]:
        v = module.node_vectors().cpu().numpy()
        known = {"edge cosine": edge_cosine(v, chosen.edges), "correlation": distance_correlation(v, distances)}
        return known | {"recall": module.measure(data.dataset)["edge_recall"]}

    curve = _Curve(measure, 20)
    fit(module, data, steps, [curve])
    rows = curve.rows + scalar_rows(measure())
    for at, cosine in zip(*distance_profile(module.node_vectors().numpy(), distances), strict=True):
        rows += scalar_rows({"cosine": cosine}, int(at), "distance")
    return rows


def complexity() -> list[MetricRow]:
    """Bits and norms of both kinds of memory of a star and a cycle."""
    rows: list[MetricRow] = []
    for name, graph in (("star", path_star(100, 5)), ("cycle", cycle(401))):
        found = memory_complexity(graph, m=64, cells=4)
        figures = {"norms": found.associative_norm / found.geometric_norm}
        figures["bits"] = found.associative_bits / found.geometric_bits
        rows += scalar_rows(figures | {"associative bits": found.associative_bits}, environment=name)
    return rows
