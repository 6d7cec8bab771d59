"""The figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.claims import NamedFigure, Results
from jobs.drawing import panels
from jobs.papers.password_schemas.names import EASY, EASY_TIMES, EFFORT, EXACT, ORDERED, QUALITY, SITES, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_SHOWN = (
    ("word-sum", "linear"),
    ("running-sum", "linear"),
    ("mental-hash", "linear"),
    ("skip-sum", "cp-sat"),
    ("two-pass-running-sum", "cp-sat"),
)


def figures(results: Results) -> list[NamedFigure]:
    """Draw success against leaked pairs, the computer beside the unlimited adversary, and solver effort."""
    drawn = []
    if results.rows(experiment=QUALITY):
        words = (
            "Share of fresh responses that are known in whole after so many leaked ones. The thin line is the exact chance that all letters of "
            "a fresh challenge have leaked. Schemas are evaluated; this is no password manager."
        )
        drawn.append(NamedFigure("Success against leaked pairs", words, _success(results)))
    if results.rows(experiment=EXACT):
        words = "Mental hash: the linear attack, and an adversary that goes through every key. Where the bars are equal, complexity buys nothing."
        drawn.append(NamedFigure("Computer against unlimited adversary", words, _unlimited(results)))
    if results.rows(experiment=EFFORT):
        words = "Conflicts of searches, a dot a key; a cross is a search that ended at its limit, which does not mean secure."
        drawn.append(NamedFigure("Solver effort", words, _effort(results)))
    return drawn


def _success(results: Results) -> Figure:
    from lightning_modules.passwords.quality import coverage

    figure, axes = panels(2, size=(9, 3.6))
    for axis, (source, title) in zip(axes, (("letters-8", "8 random letters"), (SITES, "site names")), strict=True):
        for colour, (name, attack) in zip(_COLOURS, _SHOWN, strict=False):
            at = {"experiment": QUALITY, "method": name, "source": source, "attack": attack, "environment": ""}
            if results.rows(metric="success", **at):
                axis.plot(
                    *results.curve("success", "step", **at),
                    color=colour,
                    marker="." if attack != "linear" else "",
                    label=name,
                )
        if source == "letters-8":
            pairs = range(1, 41)
            axis.plot(pairs, [coverage(8, m) for m in pairs], color="black", linewidth=0.7, label="all letters leaked")
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel("leaked pairs")
        axis.set_ylim(-0.03, 1.03)
        axis.grid()
    axes[0].set_ylabel("fresh responses known")
    axes[0].legend(fontsize="x-small")
    return figure


def _unlimited(results: Results) -> Figure:
    figure, axes = panels(size=(5, 3.4))
    for number, (metric, label) in enumerate((("computer", "linear attack"), ("unlimited", "all keys"))):
        pairs, shares = results.curve(metric, "step", experiment=EXACT)
        places = [m + 0.36 * number - 0.18 for m in pairs]
        axes[0].bar(places, shares, 0.36, color=_COLOURS[number], label=label)
    axes[0].set_xlabel("leaked pairs")
    axes[0].set_ylabel("fresh responses known")
    axes[0].legend()
    return figure


def _effort(results: Results) -> Figure:
    figure, axes = panels(2, size=(9, 3.6))
    n = numbers(EASY)[2]
    groups = [[(f"{times:g} n", EASY, int(times * n), "cp-sat") for times in EASY_TIMES]]
    groups.append(
        [
            (f"({','.join(name.split('-')[2:4])})\n{solver}", name, 28, solver)
            for name in ORDERED
            for solver in ("cp-sat", "glucose")
        ]
    )
    for axis, group, title in zip(
        axes, groups, ("pointer-sum(1,1), n = 26, by pairs", "pointer-sum, n = 14, 28 pairs"), strict=True
    ):
        for place, (_, name, pairs, solver) in enumerate(group):
            at = {"experiment": EFFORT, "method": name, "pairs": pairs, "solver": solver}
            solved = {row["seed"]: row["value"] for row in results.rows(metric="solved", **at)}
            for row in results.rows(metric="conflicts", **at):
                mark = "o" if solved.get(row["seed"]) else "x"
                axis.plot(place, max(row["value"], 1), mark, color=_COLOURS[0] if solver == "cp-sat" else _COLOURS[1])
        axis.set_xticks(range(len(group)), [label for label, *_ in group], fontsize="small")
        axis.set_yscale("log")
        axis.set_title(title, fontsize="medium")
        axis.grid(axis="y")
    axes[0].set_ylabel("conflicts")
    return figure
