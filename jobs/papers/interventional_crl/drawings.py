"""The figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jobs.claims import NamedFigure, Results
from jobs.papers.interventional_crl.names import BROKEN, CONTRASTIVE, METHODS, NETWORK, OVERFIT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHADES = ("#0072b2", "#e69f00", "#cc79a7", "#7f7f7f", "#000000", "#009e73", "#56b4e9", "#8c564b")
_COLOURS = dict(zip(METHODS, _SHADES, strict=True))


def figures(results: Results) -> list[NamedFigure]:
    """Draw the methods' recovery, how near the cross-entropy comes to the best, and what breaks or spoils it."""
    drawn = []
    if results.rows(experiment=NETWORK):
        words = "Each dot a world. R2 is high for everyone who keeps the information; only MCC tells who separates the latents."
        drawn.append(NamedFigure("MCC against R2", words, _figure(lambda axes: _recovery(axes, results))))
        words = "Each dot a world; on the line the classifier is as good as the exact log-odds, which nobody can beat on fresh rows."
        drawn.append(NamedFigure("Held-out cross-entropy", words, _figure(lambda axes: _against_bayes(axes, results))))
    if results.rows(experiment=OVERFIT) or results.rows(experiment=BROKEN):
        words = "Without shifts of the means or with environments mixed up the latents are lost; training past the best validation costs some."
        drawn.append(NamedFigure("What costs the latents", words, _figure(lambda axes: _losses(axes, results))))
    return drawn


def _figure(draw: Callable[[Any], None]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.grid(alpha=0.4)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _recovery(axes: Any, results: Results) -> None:
    for method in METHODS:
        at = {"experiment": NETWORK, "method": method}
        axes.plot(results.values("R2", **at), results.values("MCC", **at), "o", label=method, color=_COLOURS[method])
    axes.set_xlabel("R2 from estimated to true latents")
    axes.set_ylabel("MCC")


def _against_bayes(axes: Any, results: Results) -> None:
    ends: list[float] = []
    for method in METHODS:
        at = {"experiment": NETWORK, "method": method}
        best, found = results.values("Bayes", **at), results.values("held-out CE", **at)
        if found:
            axes.plot(best, found, "o", label=method, color=_COLOURS[method])
            ends += best + found
    if ends:
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], "--", color="#7f7f7f")
    axes.set_xlabel("cross-entropy of the exact log-odds")
    axes.set_ylabel("held-out cross-entropy")


def _losses(axes: Any, results: Results) -> None:
    bars = [(CONTRASTIVE, results.mean("MCC", experiment=NETWORK, method=CONTRASTIVE))]
    bars += [
        (f"L-BFGS, {place}", results.mean("MCC", experiment=OVERFIT, environment=place))
        for place in ("before", "after", "kept")
    ]
    methods = sorted({row["method"] for row in results.rows(experiment=BROKEN)})
    bars += [(method, results.mean("MCC", experiment=BROKEN, method=method)) for method in methods]
    bars = [(name, value) for name, value in bars if value == value]
    axes.barh([name for name, _ in bars][::-1], [value for _, value in bars][::-1], color="#0072b2")
    axes.set_xlabel("MCC")
    axes.set_xlim(0, 1)
