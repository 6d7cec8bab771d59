"""The figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jobs.claims import NamedFigure, Results
from jobs.papers.ence.names import COLOURS, CURVES, DESCENT, ENERGY, FLATNESS, GRID, METHODS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMES = {"nce": "NCE", "ence": "eNCE"}


def figures(results: Results) -> list[NamedFigure]:
    """Draw updates and flatness against R, the landscape, best distances, and energy models against the step size."""
    drawn = []
    if results.rows(experiment=DESCENT, metric="steps"):
        words = "Updates from the noise's parameters to 0.1 from the data's; a straight line is a power law. Runs that never arrived are missing."
        drawn.append(
            NamedFigure("Updates against the distance of the means", words, _figure(lambda a: _steps(a[0], results)))
        )
    if results.rows(experiment=FLATNESS):
        words = "The Hessian at the data's parameters: its smallest eigenvalue vanishes, its condition number is polynomial in R."
        drawn.append(NamedFigure("Flatness and conditioning", words, _figure(lambda a: _flatness(a, results), 2)))
    if results.rows(experiment=GRID):
        words = (
            "log10 of the gradient's norm at R = 8; the circle is where descent starts, the star where it should end."
        )
        drawn.append(NamedFigure("How flat the losses are", words, _figure(lambda a: _landscape(a, results), 2)))
    if results.rows(experiment=CURVES):
        words = "Best distance so far on finite samples at R = 4, mean of five runs."
        drawn.append(NamedFigure("Best distance against updates", words, _figure(lambda a: _curves(a, results), 2)))
    if results.rows(experiment=ENERGY, digits="Digits"):
        words = "NLL on held-out digits by importance sampling, after 1,500 updates; what diverged is missing."
        drawn.append(
            NamedFigure("Energy networks against the step size", words, _figure(lambda a: _energy(a[0], results)))
        )
    return drawn


def _figure(draw: Callable[[Any], None], panels: int = 1) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 + 3.6 * (panels - 1), 3.6), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    draw(axes)
    for each in axes:
        if each.get_legend_handles_labels()[0]:
            each.grid()
            each.legend(fontsize="small")
    return figure


def _steps(axes: Any, results: Results) -> None:
    for (loss, optimizer), colour in COLOURS.items():
        lr = 1.0 if optimizer == "gd" else 0.1
        rows = results.rows(experiment=DESCENT, method=optimizer, loss=loss, lr=lr, metric="steps")
        points = sorted((float(row["environment"]), row["value"]) for row in rows)
        label = f"{_NAMES[loss]} + {optimizer.upper()}"
        axes.plot(
            *zip(*points, strict=True) if points else ([], []), marker="o", markersize=3, color=colour, label=label
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("distance R of the means")
    axes.set_ylabel("updates")


def _flatness(axes: Any, results: Results) -> None:
    for axis, metric, words in zip(
        axes, ("smallest", "condition"), ("smallest eigenvalue", "condition number"), strict=True
    ):
        for loss in ("nce", "ence"):
            rows = results.rows(experiment=FLATNESS, method=loss, metric=metric)
            points = sorted((float(row["environment"]), row["value"]) for row in rows)
            axis.plot(
                *zip(*points, strict=True), marker="o", markersize=3, color=COLOURS[loss, "ngd"], label=_NAMES[loss]
            )
        axis.set_yscale("log")
        axis.set_xlabel("distance R of the means")
        axis.set_ylabel(words)
    axes[1].set_xscale("log")


def _landscape(axes: Any, results: Results) -> None:
    for axis, loss in zip(axes, ("nce", "ence"), strict=True):
        columns = [results.values(metric, experiment=GRID, method=loss) for metric in ("theta", "alpha", "log10 slope")]
        drawn = axis.tricontourf(*columns, levels=15, cmap="viridis")
        axis.figure.colorbar(drawn, ax=axis)
        axis.plot([0], [0], "o", color="white")
        axis.plot([8], [32], "*", color="white", markersize=10)
        axis.set_title(_NAMES[loss])
        axis.set_xlabel("theta")
        axis.set_ylabel("alpha")


def _curves(axes: Any, results: Results) -> None:
    for axis, dimension in zip(axes, (1, 16), strict=True):
        for loss, optimizer in METHODS:
            at = {"experiment": CURVES, "method": optimizer, "loss": loss, "dimension": dimension}
            label = f"{_NAMES[loss]} + {optimizer.upper()}"
            axis.plot(
                *results.curve("best", "step", **at),
                marker="o",
                markersize=3,
                color=COLOURS[loss, optimizer],
                label=label,
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(f"{dimension}-d")
        axis.set_xlabel("updates")
    axes[0].set_ylabel("best distance so far")


def _energy(axes: Any, results: Results) -> None:
    for loss, optimizer in METHODS:
        at = {"experiment": ENERGY, "digits": "Digits", "method": optimizer, "loss": loss}
        label = f"{_NAMES[loss]} + {optimizer.upper()}"
        axes.plot(
            *results.curve("nll", "lr", **at), marker="o", markersize=3, color=COLOURS[loss, optimizer], label=label
        )
    axes.axhline(
        results.mean("noise nll", experiment=ENERGY, digits="Digits"), color="#7f7f7f", linestyle="--", label="noise"
    )
    axes.set_xscale("log")
    axes.set_xlabel("step size")
    axes.set_ylabel("NLL")
