"""The figures."""

from __future__ import annotations

from typing import Any

from jobs.claims import NamedFigure, Results
from jobs.papers.opposing_signals.names import BETAS, LINEAR, OPTIMIZERS, PLANTED, RATES, A, B

_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#7f7f7f"


def figures(results: Results) -> list[NamedFigure]:
    """Draw sharpness and the groups' losses, the linear model, and what optimizers make of the signal."""
    drawn = []
    if results.rows(experiment=PLANTED, method="opposing"):
        words = (
            "Above, sharpness over 2 / eta of full-batch descent, with opposing signals and in the two controls; in the middle and below, the "
            "losses of the two planted groups with opposing signals and with the same signal in one class. Seed 0."
        )
        drawn.append(NamedFigure("Two groups take turns at the edge of stability", words, _planted(results)))
    if results.rows(experiment=LINEAR):
        words = "Sharpness along the gradient flow: it falls first, then grows to about alpha |beta| (dashed)."
        drawn.append(NamedFigure("Sharpness of the linear model", words, _linear(results)))
    if results.rows(experiment=OPTIMIZERS):
        words = "Training loss of each optimizer's best setting, with the signal planted and without it. Seed 0."
        drawn.append(NamedFigure("Optimizers with and without opposing signals", words, _optimizers(results)))
    return drawn


def _new(rows: int, columns: int, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=rows > 1)


def _planted(results: Results) -> Any:
    figure, ((above,), (middle,), (below,)) = _new(3, 1, 6.5)
    at: dict[str, Any] = {"experiment": PLANTED, "seed": 0, "m": 30, "magnitude": 10.0}
    for mode, colour in (("opposing", _ORANGE), ("same", _BLUE), ("none", _GREY)):
        above.plot(
            *results.curve("sharpness over 2/eta", "step", **at, method=mode), color=colour, label=mode, linewidth=1.2
        )
    above.axhline(1, color="black", linestyle=":", linewidth=1)
    above.set_ylabel("sharpness x eta / 2")
    for axes, mode in ((middle, "opposing"), (below, "same")):
        for group, colour in ((A, _GREEN), (B, _ORANGE)):
            axes.plot(
                *results.curve("group loss", "step", **at, method=mode, environment=group),
                color=colour,
                label=group,
                linewidth=0.8,
            )
        axes.set_ylabel(f"loss, {mode}")
    below.set_xlabel("step")
    for axes in (above, middle, below):
        axes.grid(axis="y")
        axes.legend(fontsize="small")
    return figure


def _linear(results: Results) -> Any:
    figure, ((axes,),) = _new(1, 1, 3.6)
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
    figure, (pair,) = _new(1, 2, 3.2)
    for axes, mode in zip(pair, ("opposing", "none"), strict=True):
        for name, colour in zip(RATES, (_BLUE, _ORANGE, _GREY, _GREEN), strict=True):
            at: dict[str, Any] = {"experiment": OPTIMIZERS, "method": name, "mode": mode, "seed": 0, "environment": ""}
            axes.plot(*results.curve("loss", "step", **at), color=colour, label=name, linewidth=1.2)
        axes.set_yscale("log")
        axes.set_title("with opposing signals" if mode == "opposing" else "without", fontsize="small")
        axes.set_xlabel("step")
        axes.grid()
    pair[0].set_ylabel("training loss")
    pair[1].legend(fontsize="small")
    return figure
