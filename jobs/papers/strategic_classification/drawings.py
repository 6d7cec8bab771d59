"""The figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jobs.claims import NamedFigure, Results
from jobs.papers.strategic_classification.names import CANCER, GAUSSIAN, METHODS, RATE, TIMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(results: Results) -> list[NamedFigure]:
    """Draw accuracy against misestimation, and the solvers' rates."""
    drawn = []
    if results.rows(experiment=CANCER):
        words = "Test accuracy at the worst cost of the set, mean over seeds; at 1 the cost is known."
        drawn.append(
            NamedFigure(
                "Worst-case accuracy against how wrong the cost may be", words, _figure(lambda a: _curves(a, results))
            )
        )
    if results.rows(experiment=GAUSSIAN):
        words = "The classifier that is exact for the believed cost, when moving is cheaper than believed: sample and closed form."
        drawn.append(
            NamedFigure("Collapse under a misestimated cost", words, _figure(lambda a: _collapse_curve(a, results)))
        )
    if results.rows(experiment=RATE):
        words = "Averaged iterates above the exact optimum; the dashed line falls as T^-1/2."
        drawn.append(NamedFigure("Gap against steps", words, _figure(lambda a: _rate_curves(a, results))))
    return drawn


def _figure(draw: Callable[[Any], None]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.grid()
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _curves(axes: Any, results: Results) -> None:
    colours: Sequence[str] = (
        *("#7f7f7f", "#8c564b", "#56b4e9", "#e69f00", "#f0c060"),
        *("#cc79a7", "#0072b2", "#009e73", "#d55e00", "#000000"),
    )
    for name, colour in zip(METHODS, colours, strict=True):
        x, y = results.curve("worst", "factor", experiment=CANCER, environment=name)
        axes.plot(x, y, label=name, color=colour, marker="o", markersize=3)
    axes.set_xlabel("people may move so many times as far as believed, or as little")
    axes.set_ylabel("worst-case accuracy")


def _collapse_curve(axes: Any, results: Results) -> None:
    for metric, label, look in (("error", "sample of 400,000", "o"), ("closed", "closed form", "-")):
        x, y = results.curve(metric, "epsilon", experiment=GAUSSIAN)
        axes.plot(x, y, look, label=label, color="#0072b2" if look == "o" else "#7f7f7f")
    axes.set_xlabel("the true cost is (1 - epsilon) times the believed one")
    axes.set_ylabel("error")


def _rate_curves(axes: Any, results: Results) -> None:
    for solver, colour in (("full_batch", "#0072b2"), ("stochastic", "#d55e00")):
        x, y = results.curve("average", "step", experiment=RATE, method=solver)
        axes.plot(x, y, marker="o", color=colour, label=solver.replace("_", " "))
    axes.plot(TIMES, [y[0] * math.sqrt(TIMES[0] / t) for t in TIMES], "--", color="#7f7f7f", label="T^-1/2")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("steps T")
    axes.set_ylabel("gap")
