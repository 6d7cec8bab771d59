"""The figures."""

from __future__ import annotations

from typing import Any

from jobs.claims import NamedFigure, Results
from jobs.drawing import panels
from jobs.papers.opposing_signals.names import BETAS, LINEAR, NATURAL, OPTIMIZERS, PLANTED, RATES, A, B
from jobs.papers.opposing_signals.statements import best_setting

_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#7f7f7f"


def figures(results: Results) -> list[NamedFigure]:
    """Draw sharpness and the groups' losses, the linear model, and what optimizers make of the signal."""
    drawn = []
    if results.rows(experiment=PLANTED, method="opposing"):
        words = (
            "Above, sharpness over 2 / eta of full-batch descent, with opposing signals and in the two controls; in the middle and "
            "below, the losses of the two planted groups with opposing signals and with the same signal in one class. Seed 0."
        )
        drawn.append(NamedFigure("Two groups take turns at the edge of stability", words, _planted(results)))
        words = (
            "What the network makes of the signal alone, a plain image: the probability of each of the two classes, step by step. "
            "Opposing signals, seed 0."
        )
        drawn.append(NamedFigure("A plain image changes its class at every step", words, _block(results)))
    if results.rows(experiment=NATURAL, method="Digits"):
        words = (
            "Nothing planted, squared loss: above, sharpness over 2 / eta; below, the mean loss of all digits and of the groups that "
            "each step moves most up and down. Seed 0."
        )
        drawn.append(NamedFigure("Digits as they are", words, _natural(results)))
    if results.rows(experiment=LINEAR):
        words = "Along the gradient flow sharpness falls first, then grows to about alpha |beta| (dashed). alpha = 20."
        drawn.append(NamedFigure("Sharpness of the linear model", words, _linear(results)))
    if results.rows(experiment=OPTIMIZERS):
        words = (
            "Training loss of each optimizer's best setting, with the signal planted and without it. Mean over seeds."
        )
        drawn.append(NamedFigure("Optimizers with and without opposing signals", words, _optimizers(results)))
    return drawn


_SEED_0: dict[str, Any] = {"experiment": PLANTED, "seed": 0, "m": 30, "magnitude": 10.0}


def _planted(results: Results) -> Any:
    figure, (above, middle, below) = panels(1, 3, (7.5, 6.5))
    for mode, colour in (("opposing", _ORANGE), ("same", _BLUE), ("none", _GREY)):
        curve = results.curve("sharpness over 2/eta", "step", **_SEED_0, method=mode)
        above.plot(*curve, color=colour, label=mode, linewidth=1.2)
    above.axhline(1, color="black", linestyle=":", linewidth=1)
    above.set_ylabel("sharpness x eta / 2")
    for axes, mode in ((middle, "opposing"), (below, "same")):
        for group, colour in ((A, _GREEN), (B, _ORANGE)):
            curve = results.curve("group loss", "step", **_SEED_0, method=mode, environment=group)
            axes.plot(*curve, color=colour, label=group, linewidth=0.8)
        axes.set_ylabel(f"loss, {mode}")
    below.set_xlabel("step")
    for axes in (above, middle, below):
        axes.grid(axis="y")
        axes.legend(fontsize="small")
    return figure


def _block(results: Results) -> Any:
    figure, (axes,) = panels(1, 1, (7.5, 2.8))
    for group, colour in ((A, _GREEN), (B, _ORANGE)):
        at = {**_SEED_0, "method": "opposing", "environment": group}
        steps, values = results.curve("probability of the class", "step", **at)
        axes.plot(steps[:120], values[:120], color=colour, label=f"class of {group}", linewidth=0.8)
    axes.set_xlabel("step")
    axes.set_ylabel("probability")
    axes.legend(fontsize="small")
    return figure


def _natural(results: Results) -> Any:
    figure, (above, below) = panels(1, 2, (7.5, 4.8))
    at: dict[str, Any] = {"experiment": NATURAL, "method": "Digits", "seed": 0}
    above.plot(*results.curve("sharpness over 2/eta", "step", **at), color=_ORANGE, linewidth=1.2)
    above.axhline(1, color="black", linestyle=":", linewidth=1)
    above.set_ylabel("sharpness x eta / 2")
    for group, colour in (("A", _GREEN), ("B", _ORANGE)):
        curve = results.curve("group loss", "step", **at, environment=group)
        below.plot(*curve, color=colour, label=f"group {group}", linewidth=0.8)
    below.plot(*results.curve("loss", "step", **at), color="black", label="all", linewidth=1.2)
    below.set_ylabel("loss")
    below.set_xlabel("step")
    below.legend(fontsize="small")
    above.grid(axis="y")
    return figure


def _linear(results: Results) -> Any:
    figure, (axes,) = panels(1, 1, (7.5, 3.6))
    at: dict[str, Any] = {"experiment": LINEAR, "alpha": 20.0}
    for size, colour in zip(BETAS, (_GREY, _BLUE, _GREEN, _ORANGE, "#cc79a7"), strict=True):
        steps, values = results.curve("sharpness", "step", **at, environment=f"beta={size:g}")
        axes.plot([step * 5e-4 for step in steps], values, color=colour, label=f"|beta| = {size:g}")
        axes.axhline(20 * size, color=colour, linestyle="--", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=0.5)
    axes.set_yscale("log")
    axes.set_xlabel("time")
    axes.set_ylabel("sharpness")
    axes.grid()
    axes.legend(fontsize="small")
    return figure


def _optimizers(results: Results) -> Any:
    figure, pair = panels(2, 1, (7.5, 3.2))
    for axes, mode in zip(pair, ("opposing", "none"), strict=True):
        for name, colour in zip(RATES, (_BLUE, _ORANGE, _GREY, _GREEN), strict=True):
            setting = best_setting(results, name, mode)[0]
            at: dict[str, Any] = {"experiment": OPTIMIZERS, "method": name, "mode": mode, "environment": setting}
            axes.plot(*results.curve("loss", "step", **at), color=colour, label=name, linewidth=1.2)
        axes.set_yscale("log")
        axes.set_title("with opposing signals" if mode == "opposing" else "without", fontsize="small")
        axes.set_xlabel("step")
        axes.grid()
    pair[0].set_ylabel("training loss")
    pair[1].legend(fontsize="small")
    return figure
