"""The figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs.claims import NamedFigure, Results
from jobs.drawing import panels
from jobs.papers.geometric_memory.names import (
    DIRECTION,
    FROZEN,
    GRAPHS,
    HARDEST,
    IN_WEIGHTS,
    NODE2VEC,
    PAUSES,
    TINY,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_CONTROLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("paths", {"experiment": IN_WEIGHTS, "target": "path"}),
    ("reverse", {"experiment": IN_WEIGHTS, "target": "reverse"}),
    ("hardest\ntoken", {"experiment": HARDEST, "path_weight": None}),
    ("hardest,\nweight 1", {"experiment": HARDEST, "path_weight": 1.0}),
    ("no pauses", {"experiment": PAUSES, "pauses": 0}),
    ("forward\nedges", {"experiment": DIRECTION, "directions": "forward"}),
    ("backward\nedges", {"experiment": DIRECTION, "directions": "backward"}),
    ("frozen", {"experiment": FROZEN}),
)


def figures(results: Results) -> list[NamedFigure]:
    """Draw heat-maps, accuracies by control, Node2Vec's energies, and cosines against distance."""
    drawn = []
    if results.rows(environment="heat map"):
        words = (
            "Cosine of the leaf of a held-out arm (row) with the first node of another (column). A bright diagonal: the arm's nodes "
            "point the same way, though no path of it was trained. With frozen embeddings edges and training paths are known, too."
        )
        drawn.append(NamedFigure("Leaf against first node", words, _heat_maps(results)))
    if results.rows(experiment=IN_WEIGHTS):
        words = (
            "Share of the training paths and of the held-out ones that are right throughout; the line is chance, 1/100."
        )
        drawn.append(NamedFigure("Accuracies by control", words, _controls(results)))
    if results.rows(experiment=IN_WEIGHTS, environment="curve"):
        words = "Edges are known first, then arms point their own ways, then paths are found that were never trained. Seed 0."
        drawn.append(NamedFigure("What is known when", words, _course(results)))
    if results.rows(experiment=NODE2VEC, method="node2vec"):
        words = (
            "Energy of V along each eigenvector of -L over the updates: thick the constant and the Fiedler-like ones. "
            "All others die out."
        )
        drawn.append(NamedFigure("Node2Vec falls onto the first eigenvectors", words, _energies(results)))
    if results.rows(experiment=TINY):
        words = "Rank correlation of cosine distance with graph distance, Node2Vec's and a small transformer's."
        drawn.append(NamedFigure("Small graphs", words, _tiny(results)))
    return drawn


def _heat_maps(results: Results) -> Figure:
    shown = [(name, kind) for name, kind in (("trained", IN_WEIGHTS), ("frozen", FROZEN)) if heat_map(results, kind)]
    figure, axes = panels(len(shown), size=(3.6 * len(shown) + 0.6, 3.4))
    for axis, (name, experiment) in zip(axes, shown, strict=True):
        image = axis.imshow(heat_map(results, experiment), vmin=-1, vmax=1, cmap="RdBu_r")
        axis.set_title(f"{name} embeddings", fontsize="medium")
        axis.set_xlabel("first node of arm")
        axis.set_ylabel("leaf of arm")
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def heat_map(results: Results, experiment: str) -> list[list[float]]:
    """The stored cosines of an experiment, leaf by leaf."""
    cells: dict[int, dict[int, float]] = {}
    for row in results.rows(experiment=experiment, environment="heat map"):
        cells.setdefault(row["step"], {})[int(row["metric"].removeprefix("column "))] = row["value"]
    return [[columns[column] for column in sorted(columns)] for _, columns in sorted(cells.items())]


def _controls(results: Results) -> Figure:
    figure, axes = panels(size=(9, 3.4))
    shown = [(name, at) for name, at in _CONTROLS if results.values("full_path", **at, environment="")]
    for number, (metric, label) in enumerate((("train_full_path", "trained"), ("full_path", "held out"))):
        heights = [results.mean(metric, **at, environment="") for _, at in shown]
        places = [place + 0.4 * number - 0.2 for place in range(len(shown))]
        axes[0].bar(places, heights, 0.4, color=_COLOURS[number], label=label)
    axes[0].axhline(0.01, color="black", linewidth=0.8, linestyle=":")
    axes[0].set_xticks(range(len(shown)), [name for name, _ in shown], fontsize="small")
    axes[0].set_ylabel("paths right throughout")
    axes[0].set_ylim(0, 1.2)
    axes[0].legend(loc="upper right", ncols=2)
    return figure


def _course(results: Results) -> Figure:
    figure, axes = panels(size=(7, 3.4))
    at = {"experiment": IN_WEIGHTS, "target": "path", "environment": "curve", "seed": 0}
    shown = (
        ("edge_recall", "edges"),
        ("train_full_path", "training paths"),
        ("first_token", "held-out first token"),
        ("full_path", "held-out paths"),
        ("diagonal", "cosine, own arm"),
        ("off diagonal", "cosine, other arms"),
    )
    for colour, (metric, label) in zip(_COLOURS, shown, strict=True):
        axes[0].plot(*results.curve(metric, "step", **at), color=colour, label=label)
    axes[0].set_xlabel("steps")
    axes[0].grid()
    axes[0].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _energies(results: Results) -> Figure:
    known = [graph for graph in GRAPHS if results.rows(experiment=NODE2VEC, method="node2vec", graph=graph)]
    figure, axes = panels(len(known), size=(3.0 * len(known) + 0.6, 3.4))
    for axis, graph in zip(axes, known, strict=True):
        at = {"experiment": NODE2VEC, "method": "node2vec", "graph": graph}
        kept = int(results.mean("kept", **at))
        number = 0
        while results.values(f"energy {number}", **at):
            steps, values = results.curve(f"energy {number}", "step", **at)
            colour = _COLOURS[0] if number == 0 else _COLOURS[1] if number < kept else "#aaaaaa"
            axis.plot([max(step, 1) for step in steps], values, color=colour, linewidth=1.8 if number < kept else 0.8)
            number += 1
        axis.set_xscale("log")
        axis.set_xlabel("updates")
        axis.set_title(graph, fontsize="medium")
    axes[0].set_ylabel("energy along an eigenvector")
    return figure


def _tiny(results: Results) -> Figure:
    figure, axes = panels(size=(5.6, 3.4))
    for number, (experiment, label) in enumerate(((NODE2VEC, "Node2Vec"), (TINY, "transformer"))):
        heights = [last(results, "correlation", experiment, graph) for graph in GRAPHS]
        places = [place + 0.4 * number - 0.2 for place in range(len(GRAPHS))]
        axes[0].bar(places, heights, 0.4, color=_COLOURS[number], label=label)
    axes[0].set_xticks(range(len(GRAPHS)), GRAPHS)
    axes[0].set_ylabel("correlation with graph distance")
    axes[0].set_ylim(0, 1.25)
    axes[0].legend(loc="upper right", ncols=2)
    return figure


def last(results: Results, metric: str, experiment: str, graph: str) -> float:
    """A figure of a small graph at the end, of Node2Vec after 10,000 updates."""
    if experiment == NODE2VEC:
        return results.mean(metric, experiment=experiment, method="node2vec", graph=graph, step=10_000)
    return results.mean(metric, experiment=experiment, graph=graph, environment="")
