"""What the paper, a prototype and derivations state, beside what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jobs.claims import Claim, Results, Scale, least, most
from jobs.papers.geometric_memory.drawings import last
from jobs.papers.geometric_memory.names import (
    COMPLEXITY,
    DIRECTION,
    EDGES_ONLY,
    FROZEN,
    GRAPHS,
    HARDEST,
    IN_CONTEXT,
    IN_WEIGHTS,
    LARGE,
    NODE2VEC,
    PAPER_STARS,
    PAUSES,
    SHARES,
    STARTS,
    TINY,
    TREES,
)

_PROTOTYPE = "ours, reference prototype"


def claims(results: Results, scale: Scale) -> list[Claim]:
    """Each statement beside the figure measured."""
    made = [*_paths(results), *_controls(results), *_edges(results), *_context(results)]
    made += [*_spectra(results), *_layouts(results), *_small(results)]
    return made + (_large(results) if scale == "paper" else [])


def _end(results: Results, metric: str, experiment: str, **at: Any) -> list[float]:
    """Figures at the end of trainings."""
    return results.values(metric, experiment=experiment, environment="", **at)


def _paths(results: Results) -> list[Claim]:
    made = []
    for metric, words, bar in (
        ("edge_recall", "edge recall", 0.99),
        ("first_token", "accuracy of the first token on held-out arms", 0.9),
        ("full_path", "accuracy of full paths on held-out arms", 0.9),
    ):
        found = least(_end(results, metric, IN_WEIGHTS, target="path"))
        source = f"{_PROTOTYPE}: 1.00; the paper has up to 100 % on far larger stars"
        made.append(
            Claim(f"star of 100 arms of 5, both directions: {words}, least", bar, found, 0.0, source, "at least")
        )
    reverse = least(_end(results, "full_path", IN_WEIGHTS, target="reverse"))
    made.append(Claim("the same, reverse paths: full paths on held-out arms", 1.0, reverse, 0.04, _PROTOTYPE))
    alone = least(_end(results, "first_token", HARDEST, path_weight=None))
    lookup = {"path_weight": 1.0}
    learned = least(_end(results, "train_first_token", HARDEST, **lookup))
    held = most(_end(results, "first_token", HARDEST, **lookup))
    made += [
        Claim("hardest token alone: held-out accuracy, least", 0.85, alone, 0.0, f"{_PROTOTYPE}: 0.88 to 1.00", "at least"),
        Claim("hardest token alone, path weight 1: accuracy on training arms", 0.99, learned, 0.0, f"{_PROTOTYPE}: 1.00", "at least"),
        Claim("hardest token alone, path weight 1: held-out accuracy", 0.3, held, 0.0, f"{_PROTOTYPE}: 0.04", "at most"),
    ]  # fmt: skip
    none = least(_end(results, "full_path", PAUSES, pauses=0))
    area = {count: _area(results, count) for count in (0, 4)}
    end = {count: results.mean("full_path", experiment=PAUSES, environment="", pauses=count) for count in (0, 4)}
    made += [
        Claim("no pauses: full paths on held-out arms, least", 0.85, none, 0.0, f"{_PROTOTYPE}: 0.96", "at least"),
        Claim("four pauses against none: gain in full paths on held-out arms at the end", 0.0, end[4] - end[0], 0.0, "ours", "at least"),
        Claim("four pauses against none: gain in held-out accuracy of the first token, mean over trainings and their steps", 0.0, area[4] - area[0], 0.0, "paper: more pauses converge faster", "at least"),
    ]  # fmt: skip
    return made


def _area(results: Results, pauses: int) -> float:
    return results.mean("first_token", experiment=PAUSES, environment="curve", pauses=pauses)


def _controls(results: Results) -> list[Claim]:
    def both(experiment: str, words: str, **at: Any) -> list[Claim]:
        learned = least(_end(results, "train_full_path", experiment, **at))
        held = most(_end(results, "full_path", experiment, **at))
        return [
            Claim(f"{words}: full paths on training arms", 0.99, learned, 0.0, f"{_PROTOTYPE}: 1.00", "at least"),
            Claim(f"{words}: full paths on held-out arms", 0.05, held, 0.0, f"{_PROTOTYPE}: 0.00; paper: fails", "at most"),
        ]  # fmt: skip

    made = both(DIRECTION, "forward edges only", directions="forward")
    nearest = most(_end(results, "nearest", DIRECTION, directions="forward"))
    made.append(Claim("forward edges only: leaves nearest the first node of their own arm, share", 0.2, nearest, 0.0, f"{_PROTOTYPE}: 0.04", "at most"))  # fmt: skip
    made += both(FROZEN, "frozen embeddings")
    recall = least(_end(results, "edge_recall", FROZEN))
    gap = results.mean("diagonal", experiment=FROZEN, environment="") - results.mean(
        "off diagonal", experiment=FROZEN, environment=""
    )
    backward = most(_end(results, "full_path", DIRECTION, directions="backward"))
    made += [
        Claim("frozen embeddings: edge recall, least", 0.9, recall, 0.0, f"{_PROTOTYPE}: 0.93", "at least"),
        Claim("frozen embeddings: cosine of a leaf with its own first node, above others", 0.0, gap, 0.05, _PROTOTYPE),
        Claim("backward edges only, reverse paths: full paths on held-out arms", 0.5, backward, 0.0, "paper: solved on its smaller graphs; the bar is ours", "at least"),
    ]  # fmt: skip
    split = {by: _end(results, "first_token", TREES, split_by=by) for by in ("leaf", "first")}
    full = {by: results.mean("full_path", experiment=TREES, split_by=by, environment="") for by in ("leaf", "first")}
    source = "paper: above chance (1/50); the bar is ours"
    made += [
        Claim("star of 50 trees, split by leaves: held-out accuracy of the first token", 0.2, least(split["leaf"]), 0.0, source, "at least"),
        Claim("star of 50 trees, split by first nodes: held-out accuracy of the first token", 0.2, least(split["first"]), 0.0, source, "at least"),
        Claim("star of 50 trees: accuracy of the first token on held-out leaves less that on held-out first nodes", 0.0, least(split["leaf"]) - most(split["first"]), 0.0, "paper: the latter are harder", "at least"),
        Claim("star of 50 trees: full paths on held-out leaves less those on held-out first nodes", 0.0, full["leaf"] - full["first"], 0.0, "paper: the latter are harder", "at least"),
    ]  # fmt: skip
    return made


def _edges(results: Results) -> list[Claim]:
    made = []
    at = {"experiment": EDGES_ONLY, "method": "transformer", "environment": ""}
    for row in results.rows(metric="diagonal", **at) or [{"seed": seed, "value": math.nan} for seed in (0, 2)]:
        words = f"edges alone, seed {row['seed']}: cosine of a leaf with its own first node"
        made.append(Claim(words, 0.5, row["value"], 0.1, f"{_PROTOTYPE}: 0.50"))
    mamba = {"experiment": EDGES_ONLY, "method": "mamba", "environment": ""}
    gap = results.mean("diagonal", **mamba) - results.mean("off diagonal", **mamba)
    shown = "paper: models of edges alone show the diagonal"
    return [
        *made,
        Claim("edges alone: edge recall, least", 1.0, least(results.values("edge_recall", **at)), 0.0, _PROTOTYPE),
        Claim("edges alone: cosine with the first nodes of other arms, largest mean", 0.0, most(results.values("off diagonal", **at)), 0.0, f"{_PROTOTYPE}: -0.11, -0.13", "at most"),
        Claim("edges alone: leaves nearest the first node of their own arm, least share", 0.95, least(results.values("nearest", **at)), 0.0, f"{_PROTOTYPE}: 1.00; {shown}", "at least"),
        Claim("edges alone, Mamba: leaves nearest the first node of their own arm, share", 0.95, least(results.values("nearest", **mamba)), 0.0, f"{_PROTOTYPE}: 1.00; {shown}", "at least"),
        Claim("edges alone, Mamba: cosine with the own arm's first node, above others", 0.3, gap, 0.0, f"{_PROTOTYPE}: 0.40", "at least"),
    ]  # fmt: skip


def _context(results: Results) -> list[Claim]:
    made = []
    for arms in sorted({row["arms"] for row in results.rows(experiment=IN_CONTEXT)} or {2}):
        at = {"experiment": IN_CONTEXT, "arms": arms, "reverse": False}
        easy = [value for place in (0, 2, 3, 4) for value in results.values(f"token_{place}", **at)]
        first = results.values("token_1", **at)
        off = most([abs(value - 1 / arms) for value in first])
        full = results.values("full_path", **at)
        apart = most([abs(a - b) for a, b in zip(first, full, strict=True)])
        back = least(results.values("full_path", **{**at, "reverse": True}))
        words = f"in context, {arms} arms of 5"
        made += [
            Claim(f"{words}: accuracy at every other place of the path, least", 0.98, least(easy), 0.0, f"{_PROTOTYPE}: 0.999", "at least"),
            Claim(f"{words}: accuracy at the first node after the root, largest distance from chance 1/{arms}", 0.0, off, 0.06, f"paper: at chance; {_PROTOTYPE}"),
            Claim(f"{words}: full paths less that accuracy, largest difference", 0.0, apart, 0.01, _PROTOTYPE),
            Claim(f"{words}, reverse: full paths", 0.98, back, 0.0, f"paper: 100 %; {_PROTOTYPE}: 0.996", "at least"),
        ]  # fmt: skip
    return made


def _of(graph: str) -> dict[str, Any]:
    return {"experiment": NODE2VEC, "method": "node2vec", "graph": graph}


def _spectra(results: Results) -> list[Claim]:
    errors = results.values("gradient error", experiment=NODE2VEC)
    exact = results.mean("spectrum error", **_of("cycle"))
    made = [
        Claim("Node2Vec: autograd's gradient less C V, largest entry", 1e-12, most(errors), 0.0, f"derived; {_PROTOTYPE}: 2e-15", "at most"),
        Claim("cycle of 15: eigenvalues of -L less -2 + 2 cos(2 pi k / n), largest", 1e-12, exact, 0.0, "derived", "at most"),
    ]  # fmt: skip
    known = (
        ("star", "star of 4 arms of 5", (0.062, -0.095, -0.095, -0.095, -0.5)),
        ("grid", "grid of 4 by 4", (0.021, -0.414, -0.414)),
    )
    for graph, words, expected in known:
        found = [results.mean(f"eigenvalue {i}", **_of(graph)) for i in range(len(expected))]
        error = largest_of([abs(a - b) for a, b in zip(found, expected, strict=True)])
        values = ", ".join(map(str, expected))
        made.append(Claim(f"{words}: first eigenvalues of -L less {values}, largest", 0.0, error, 5e-4, _PROTOTYPE))
    for name in ("star", "cycle"):
        ratio = results.mean("norms", experiment=COMPLEXITY, environment=name)
        words = f"{name} of 401 nodes: norm of a table of edges over the norm of a layout"
        made.append(Claim(words, 1.0, ratio, 0.01, "paper: sqrt |E| and sqrt |V|, the gap is a constant"))
    return made


def largest_of(values: Sequence[float]) -> float:
    """The largest; NaN where one is."""
    return math.nan if not values or any(map(math.isnan, values)) else max(values)


def _layouts(results: Results) -> list[Claim]:
    made = []
    recalls = [results.mean("recall", **_of(graph), step=10_000) for graph in GRAPHS]
    tables = [results.mean("recall", experiment=NODE2VEC, method="associative", graph=g, step=1) for g in GRAPHS]
    learned = [results.mean("learned", **_of(graph)) for graph in GRAPHS]
    made += [
        Claim("Node2Vec, four small graphs: edge recall after 10,000 updates, least", 1.0, least_of(recalls), 0.0, _PROTOTYPE),
        Claim("associative table, four small graphs: edge recall after one update, least", 1.0, least_of(tables), 0.0, _PROTOTYPE),
        Claim("Node2Vec, four small graphs: updates until all edges are recalled, least", 6, least_of(learned), 0.0, f"{_PROTOTYPE}: 16, 19, 183; paper: a table appears first", "at least"),
    ]  # fmt: skip
    for graph, (bar, known) in SHARES.items():
        start, end = (results.mean("share", **_of(graph), step=step) for step in (0, 10_000))
        made += [
            Claim(f"Node2Vec, {graph}: share of energy in the constant and Fiedler-like directions at the start", STARTS[graph], start, 0.08, "derived"),
            Claim(f"Node2Vec, {graph}: the same after 10,000 updates", bar, end, 0.0, f"{_PROTOTYPE}: {known}; paper: columns fall onto these", "at least"),
        ]  # fmt: skip
    early = [results.mean("share", **_of(graph), step=2) for graph in SHARES]
    later = [results.mean("share", **_of(graph), step=100) for graph in SHARES]
    made += [
        Claim("Node2Vec: that share after 2 updates, when a table knows all edges, largest", 0.4, largest_of(early), 0.0, "paper: geometry after about 100 updates; the bar is ours", "at most"),
        Claim("Node2Vec: that share after 100 updates, least", 0.7, least_of(later), 0.0, "paper: geometry after about 100 updates; the bar is ours", "at least"),
    ]  # fmt: skip
    at = {**_of("cycle"), "step": 10_000}
    energy = [results.mean(f"energy {i}", **at) for i in range(5)]
    left = [results.mean(f"left {i}", **at) for i in range(5)]
    longer = results.mean("energy 0", **_of("star"), step=30_000) - results.mean("energy 0", **_of("star"), step=10_000)
    made += [
        Claim("Node2Vec, cycle: energies of the two Fiedler vectors, ratio", 1.0, energy[1] / energy[2], 1e-3, _PROTOTYPE),
        Claim("Node2Vec, cycle: energy of the next pair, largest", 0.01, largest_of(energy[3:]), 0.0, _PROTOTYPE, "at most"),
        Claim("Node2Vec, cycle: |C e| of the kept vectors, largest", 1e-3, largest_of(left[:3]), 0.0, f"{_PROTOTYPE}; paper: C's null space absorbs them", "at most"),
        Claim("Node2Vec, cycle: |C e| of the next pair", 0.060, (left[3] + left[4]) / 2, 1e-3, _PROTOTYPE),
        Claim("Node2Vec, star: growth of the constant's energy from 10,000 to 30,000 updates", 3.5, longer, 0.2, f"{_PROTOTYPE}: 14.4 to 17.9"),
    ]  # fmt: skip
    return made


def least_of(values: Sequence[float]) -> float:
    """The smallest; NaN where one is."""
    return math.nan if not values or any(map(math.isnan, values)) else min(values)


def _small(results: Results) -> list[Claim]:
    known = least_of([last(results, "recall", TINY, graph) for graph in GRAPHS])
    gains = [
        last(results, "correlation", NODE2VEC, graph) - last(results, "correlation", TINY, graph) for graph in GRAPHS
    ]
    source = "paper: Node2Vec's geometry is cleaner; the measure is ours"
    return [
        Claim("small transformers, four small graphs: edge recall, least", 1.0, known, 0.0, "ours"),
        Claim("four small graphs: correlation of cosine with graph distance, Node2Vec's above a transformer's, least", 0.0, least_of(gains), 0.0, source, "at least"),
    ]  # fmt: skip


def _large(results: Results) -> list[Claim]:
    made = []
    for arms, length, _ in PAPER_STARS:
        at = {"experiment": LARGE, "arms": arms, "length": length, "environment": ""}
        for method, name in (("transformer", "transformer"), ("mamba", "Mamba")):
            found = results.mean("full_path", **at, method=method, target="path")
            words = f"star of {arms} arms of {length}, {name}: full paths on held-out arms"
            made.append(Claim(words, 0.9, found, 0.0, "paper: up to 100 %; the bar is ours", "at least"))
        found = results.mean("first_token", **at, method="transformer", target="hardest")
        words = f"star of {arms} arms of {length}, hardest token alone: held-out accuracy"
        made.append(Claim(words, 0.1, found, 0.0, "paper: non-trivial; the bar is ours", "at least"))
    return made
