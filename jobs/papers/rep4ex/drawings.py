"""The figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jobs.claims import NamedFigure, Results
from jobs.papers.rep4ex.names import (
    ALPHA,
    CONFOUNDING,
    CURVE,
    GAMMAS,
    METHODS,
    MLP,
    MMR,
    MORE_STRENGTHS,
    NO_CONTROL,
    OLS,
    ORACLE,
    REACH,
    STRENGTHS,
    TRUTH,
    VANILLA,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = dict(zip(METHODS, ("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#d55e00", "#7f7f7f"), strict=True))


def figures(results: Results) -> list[NamedFigure]:
    """Draw the curves at each support, the error against the support, R^2 against alpha, the error against confounding."""
    drawn = []
    for gamma in GAMMAS:
        if results.rows(experiment=CURVE, metric="curve", gamma=gamma, seed=0):
            title = f"E[Y | do(A = a)], actions seen in (-{gamma:g}, {gamma:g})"
            words = "Seed 0. Between the dotted lines actions were seen; outside only latents can tell."
            drawn.append(NamedFigure(title, words, _figure(_curves(results, gamma))))
    if results.rows(experiment=CURVE, metric="outside"):
        words = "One action, squared error outside the support, mean over the seeds that all widths have; logarithmic."
        drawn.append(NamedFigure("Error outside the support against its width", words, _figure(_supports(results))))
    if results.rows(experiment=ALPHA):
        words = "Affine fit of the true latents on the encoder's, each point a seed: actions identify them if they move them enough."
        drawn.append(NamedFigure("R^2 against the strength of actions", words, _figure(_strengths(results))))
    if results.rows(experiment=CONFOUNDING):
        words = "One action: what the control function is for."
        drawn.append(NamedFigure("Error against confounding", words, _figure(_hidden(results))))
    return drawn


def _figure(draw: Callable[[Any], None]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.grid()
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _curves(results: Results, gamma: float) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        for name in (TRUTH, ORACLE, MMR, VANILLA, MLP, OLS):
            found = results.values("curve", experiment=CURVE, gamma=gamma, seed=0, environment=name)
            at = [REACH * (2 * i / (len(found) - 1) - 1) for i in range(len(found))]
            style: dict[str, Any] = {"color": _COLOURS.get(name, "black"), "linestyle": "--" if name == TRUTH else "-"}
            axes.plot(at, found, label=name, **style)
        for edge in (-gamma, gamma):
            axes.axvline(edge, color="black", linestyle=":", linewidth=1)
        axes.set_xlabel("a")
        axes.set_ylabel("E[Y | do(A = a)]")

    return draw


def _supports(results: Results) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        present = [{row["seed"] for row in results.rows(experiment=CURVE, gamma=gamma)} for gamma in GAMMAS]
        seeds = tuple(set.intersection(*present)) or tuple(set.union(*present))
        for name in METHODS:
            x, y = results.curve("outside", "gamma", experiment=CURVE, environment=name, seed=seeds)
            axes.plot(x, y, marker="o", color=_COLOURS[name], label=name)
        axes.set_yscale("log")
        axes.set_xlabel("gamma")
        axes.set_ylabel("squared error")

    return draw


def _strengths(results: Results) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        for name in (MMR, VANILLA):
            points, means = [], []
            for alpha in sorted((*STRENGTHS, *MORE_STRENGTHS)):
                found = results.values(f"R2 {name}", experiment=ALPHA, environment=f"alpha={alpha:g}")
                points += [(alpha, value) for value in found]
                means += [(alpha, sum(found) / len(found))] if found else []
            axes.plot(*zip(*points, strict=True), "o", color=_COLOURS[name], markersize=3)
            axes.plot(*zip(*means, strict=True), color=_COLOURS[name], label=name)
        axes.set_xlabel("alpha")
        axes.set_ylabel("R^2")

    return draw


def _hidden(results: Results) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        for name in (MMR, NO_CONTROL):
            rows = results.rows(experiment=CONFOUNDING, metric=f"outside {name}")
            places = sorted({float(row["environment"].split("=")[1]) for row in rows})
            means = [
                results.mean(f"outside {name}", experiment=CONFOUNDING, environment=f"confounding={p:g}")
                for p in places
            ]
            axes.plot(places, means, marker="o", color=_COLOURS[name], label=name)
        axes.set_yscale("log")
        axes.set_xlabel("strength of confounding")
        axes.set_ylabel("squared error outside the support")

    return draw
