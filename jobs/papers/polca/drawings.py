"""The figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.claims import NamedFigure, Results
from jobs.drawing import panels
from jobs.papers.polca.names import (
    ADDITION,
    ADDITION_BASES,
    INTERVALS,
    PLACES,
    PLANTED,
    PLANTED_BASELINES,
    PLANTED_BASES,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
_AT = {"experiment": ADDITION, "steps": 1000, "lr": 1e-3, "seed": 0}


def figures(results: Results) -> list[NamedFigure]:
    """Draw the adder's losses, what bases capture, the planted skill's curves and scores, and the interval study."""
    drawn = []
    if results.rows(**_AT, environment="place"):
        words = "Mean loss of each answer token of held-out sums while the small transformer trains, seed 0."
        drawn.append(NamedFigure("Addition is learned place by place", words, _losses(results)))
        words = (
            "Change of the mean loss along 10 directions of each basis, seed 0, beside the true change. Sharp directions oscillate: "
            "along the Hessian's the first order claims a gain that the trapezoid shows not to be there."
        )
        drawn.append(NamedFigure("Captured loss change by basis and order", words, _captured(results)))
    if results.rows(experiment=PLANTED, environment="curve", seed=0):
        words = (
            "Planted skill, seed 0, Hessian basis. Left: projected losses of the best cluster and of all other examples along its "
            "direction, over the cluster's whole change, and the mean loss over its own. Right: F1 of the best cluster for the hidden feature, mean of seeds."
        )
        drawn.append(NamedFigure("A cluster that breaks when the mean loss is nearly flat", words, _planted(results)))
    if results.rows(experiment=INTERVALS):
        words = "Share of the loss change that a complete basis misses; the line grows as the interval squared."
        drawn.append(NamedFigure("Records must be dense", words, _intervals(results)))
    return drawn


def _losses(results: Results) -> Figure:
    figure, (axes,) = panels(1)
    for place, colour in zip(PLACES, _COLOURS, strict=False):
        axes.plot(*results.curve(place, "step", **_AT, environment="place"), color=colour, label=place)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats")
    axes.grid()
    axes.legend(fontsize="small")
    return figure


def _captured(results: Results) -> Figure:
    figure, (axes,) = panels(1)
    bases = [name for name in ADDITION_BASES if results.rows(**_AT, environment=name, metric="captured")]
    for number, (metric, label) in enumerate((("captured, order 1", "first order"), ("captured", "trapezoid"))):
        values = [results.mean(metric, **_AT, environment=name) for name in bases]
        where = [place + 0.36 * number - 0.18 for place in range(len(bases))]
        axes.bar(where, values, 0.34, color=_COLOURS[number], label=label)
    total = results.mean("total", **_AT, environment=bases[0])
    axes.axhline(total, color="#7f7f7f", linestyle="--", label="true change")
    axes.set_xticks(range(len(bases)), bases)
    axes.set_ylabel("change of the mean loss, nats")
    axes.grid(axis="y")
    axes.legend(fontsize="small")
    return figure


def _planted(results: Results) -> Figure:
    figure, (left, right) = panels(2)
    at = {"experiment": PLANTED, "environment": "curve", "seed": 0}
    curves = {metric: results.curve(metric, "step", **at) for metric in ("best cluster", "others", "mean loss")}
    for (metric, (steps, values)), colour in zip(curves.items(), _COLOURS, strict=False):
        unit = abs(curves["best cluster"][1][-1]) if metric != "mean loss" else values[0] - values[-1]
        start = values[0] if metric == "mean loss" else 0.0
        left.plot(steps, [(value - start) / unit for value in values], color=colour, label=metric)
    left.set_xlim(0, 600)
    left.set_xlabel("step")
    left.set_ylabel("change, share of the whole")
    left.grid()
    left.legend(fontsize="small")
    names = [*PLANTED_BASES, *PLANTED_BASELINES]
    values = [results.mean("f1", experiment=PLANTED, method=name, order=("trapezoid", "none")) for name in names]
    right.barh(names, values, color=[_COLOURS[0]] * len(PLANTED_BASES) + [_COLOURS[1]] * len(PLANTED_BASELINES))
    right.invert_yaxis()
    right.set_xlim(0, 1)
    right.set_xlabel("F1")
    return figure


def _intervals(results: Results) -> Figure:
    figure, (axes,) = panels(1)
    steps, shares = results.curve("share", "step", experiment=INTERVALS)
    missed = [1 - share for share in shares]
    axes.plot(steps, missed, "o", color=_COLOURS[0], label="measured")
    axes.plot(steps, [missed[0] * (step / steps[0]) ** 2 for step in steps], color=_COLOURS[1], label="squared")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("steps between records")
    axes.set_ylabel("share missed")
    axes.grid()
    axes.legend(fontsize="small")
    return figure
