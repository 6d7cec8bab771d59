"""Geometric memory: paths through a graph in the weights, the controls that take the geometry away, and where it comes from.

`cells.py` computes cells, `statements.py` holds the claims, `drawings.py` the figures, `names.py` what they share.
"""

from __future__ import annotations

from typing import Any

from cluster.trial import Trial
from jobs.claims import MetricRow, Scale, cell, settings
from jobs.papers.geometric_memory.drawings import figures
from jobs.papers.geometric_memory.names import (
    COMPLEXITY,
    DIRECTION,
    EDGES_ONLY,
    FROZEN,
    GRAPHS,
    HARDEST,
    IN_CONTEXT,
    IN_CONTEXT_STEPS,
    IN_WEIGHTS,
    LARGE,
    NODE2VEC,
    PAPER_IN_CONTEXT,
    PAPER_STARS,
    PAUSE_COUNTS,
    PAUSES,
    STAR,
    TINY,
    TRAINED,
    TREES,
)
from jobs.papers.geometric_memory.statements import claims

__all__ = ["SOURCE", "TITLE", "claims", "figures", "plan", "run"]

TITLE = "Deep sequence models tend to memorize geometrically; it is unclear why"
SOURCE = "Noroozizadeh, Nagarajan, Rosenfeld & Kumar, ICML 2026, arXiv 2510.26745"

_LOOKUP: dict[str, Any] = {"path_weight": 1.0}
_FREEZE: dict[str, Any] = {**STAR, **_LOOKUP, "steps": 800, "freeze_embeddings": True, "embedding_std": 0.3}
_TREE: dict[str, Any] = {"graph": "tree_star", "arms": 50, "length": 4, "steps": 400}


def plan(scale: Scale) -> list[Trial]:
    """Cells of the small scale (minutes on two cores), or those, more seeds, and the paper's sizes, which want a GPU."""
    paper = scale == "paper"
    cells = [cell(IN_WEIGHTS, "transformer", seed, **STAR, target="path") for seed in range(8 if paper else 4)]
    cells += [cell(IN_WEIGHTS, "transformer", 0, **STAR, target="reverse")]
    cells += [cell(HARDEST, "transformer", seed, **STAR, target="hardest") for seed in range(6 if paper else 3)]
    cells += [cell(HARDEST, "transformer", 0, **STAR, **_LOOKUP, target="hardest")]
    cells += [cell(FROZEN, "transformer", seed, **_FREEZE) for seed in range(3 if paper else 1)]
    cells += [cell(DIRECTION, "transformer", 0, **STAR, **_LOOKUP, directions="forward", target="path")]
    cells += [cell(DIRECTION, "transformer", 0, **STAR, **_LOOKUP, directions="backward", target="reverse")]
    cells += [cell(PAUSES, "transformer", seed, **STAR, pauses=count) for seed in range(3) for count in PAUSE_COUNTS]
    cells += [cell(EDGES_ONLY, "transformer", seed, **STAR, path_weight=0.0) for seed in (0, 2)]
    cells += [cell(EDGES_ONLY, "mamba", 0, **STAR, path_weight=0.0, state=8)]
    cells += [cell(TREES, "transformer", 0, **_TREE, split_by=by) for by in ("leaf", "first")]
    in_context: dict[str, Any] = {"arms": 2, "length": 5, "labels": 12, "steps": IN_CONTEXT_STEPS}
    cells += [cell(IN_CONTEXT, "transformer", seed, **in_context, reverse=False) for seed in range(3)]
    cells += [cell(IN_CONTEXT, "transformer", 0, **in_context, reverse=True)]
    cells += [
        cell(NODE2VEC, "node2vec", 7, graph=graph, steps=30_000 if graph == "star" else 10_000) for graph in GRAPHS
    ]
    cells += [cell(NODE2VEC, "associative", 0, graph=graph) for graph in GRAPHS]
    cells += [cell(TINY, "transformer", 0, graph=graph, steps=500) for graph in GRAPHS]
    cells += [cell(COMPLEXITY, "closed_form")]
    return cells + (_paper_cells() if paper else [])


def _paper_cells() -> list[Trial]:
    """The paper's sizes; its batches, rates and numbers of epochs vary, these steps are ours."""
    cells = []
    for arms, length, width in PAPER_STARS:
        size = {"arms": arms, "length": length, "width": width, "layers": 12, "heads": 8, "pauses": length}
        trained = {"edges": 4096, "paths": 256, "lr": 3e-4, "warmup": 500, "fused": True, "steps": 20_000}
        for method in ("transformer", "mamba"):
            cells.append(cell(LARGE, method, 0, **size, **trained, target="path"))
        cells.append(cell(LARGE, "transformer", 0, **size, **trained, target="hardest"))
    for arms in PAPER_IN_CONTEXT:
        nodes = 1 + 4 * arms
        large = {"arms": arms, "length": 5, "labels": nodes, "layers": 12, "width": 384, "heads": 8, "init_std": 0.02}
        for reverse in (False, True):
            cells.append(
                cell(IN_CONTEXT, "transformer", 0, **large, lr=1e-4, batch_size=256, steps=20_000, reverse=reverse)
            )
    return cells


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    from jobs.papers.geometric_memory import cells

    values = settings(trial)
    if trial.dataset in TRAINED:
        return cells.trained(trial.dataset, trial.method, trial.seed, values)
    if trial.dataset == IN_CONTEXT:
        return cells.in_context(trial.seed, values)
    if trial.dataset == NODE2VEC:
        return cells.node2vec(trial.method, trial.seed, **values)
    if trial.dataset == TINY:
        return cells.tiny(trial.seed, **values)
    assert trial.dataset == COMPLEXITY
    return cells.complexity()
