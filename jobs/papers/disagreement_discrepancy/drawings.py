"""The figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs.claims import NamedFigure, Results
from jobs.papers.disagreement_discrepancy.names import BASELINES, DIGITS, FLIGHTS
from jobs.papers.disagreement_discrepancy.statements import FEATURES, LOGITS, WITHOUT, pairs, violations

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#e69f00", "#7f7f7f", "#8c564b", "#000000")
_MARKERS = "osDv^<>Ph"
_DELTAS = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005)


def figures(results: Results) -> list[NamedFigure]:
    """Draw predicted against true errors, and violations against delta."""
    drawn = []
    for experiment, kind, title in (
        (DIGITS, "augmented", "Shifted digits: predicted against true error"),
        (FLIGHTS, "mlp", "Flights of other months: predicted against true error"),
    ):
        conditions = {"experiment": experiment, "method": kind}
        if results.rows(metric="true", **conditions):
            words = "A point a shift and seed; filled: the bound. Below the dashed line a method was too hopeful."
            drawn.append(NamedFigure(title, words, _scatter(results, conditions)))
    conditions = {"experiment": DIGITS, "method": "augmented"}
    if results.rows(metric="true", **conditions):
        words = "Share of shifts whose error is above the bound on logits, against the delta that is asked for."
        drawn.append(NamedFigure("Violations against delta", words, _violations(results, conditions)))
    return drawn


def _scatter(results: Results, conditions: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    largest = 0.0
    for number, method in enumerate((LOGITS, WITHOUT, FEATURES, *BASELINES)):
        predicted, true = pairs(results, method, **conditions)
        largest = max([largest, *true])
        colour = _COLOURS[number]
        face = colour if method == LOGITS else "none"
        axes.scatter(true, predicted, s=20, marker=_MARKERS[number], facecolors=face, edgecolors=colour, label=method)
    axes.plot([0, 1], [0, 1], color="#7f7f7f", linestyle="--", linewidth=1)
    axes.set_xlim(0, min(1.0, largest * 1.05 + 0.01))
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("true error")
    axes.set_ylabel("predicted error")
    axes.grid()
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _violations(results: Results, conditions: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        _DELTAS, [violations(results, d, **conditions) for d in _DELTAS], marker="o", color="#0072b2", label=LOGITS
    )
    axes.plot(_DELTAS, _DELTAS, color="#7f7f7f", linestyle="--", linewidth=1, label="allowed")
    axes.set_xlabel("delta")
    axes.set_ylabel("share of shifts above the bound")
    axes.grid()
    axes.legend(fontsize="small")
    return figure
