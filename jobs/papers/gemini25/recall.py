"""Long context: keys with values among filler, learned at one length and asked for at longer ones, at every depth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cluster.trial import Trial
from jobs.claims import Claim, MetricRow, NamedFigure, Results, Scale, cell, least, mean, most, settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEEDLES = "gemini25/needles"
EXPERIMENTS = (NEEDLES,)

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the needle: 0 at the first token, 1 right before the question."""
TRAINED = 64
"""Tokens of the sequences that are learned."""
ENOUGH = 0.01
"""Mean loss of ten steps at which a training ends."""
_VARIANTS = ("none", "rotary", "learned")
_PROTOTYPE = "ours, prototype"


def plan(scale: Scale) -> list[Trial]:
    """Cells; the paper scale has more seeds, longer sequences and longer trainings without the mix."""
    paper = scale == "paper"
    cells = [_cell(positions, 0, 2) for positions in _VARIANTS]
    cells += [_cell("none", 1, 2), _cell("rotary", 0, 1)]
    if paper:
        cells += [_cell(positions, 1, 2) for positions in ("rotary", "learned")]
        cells += [_cell(positions, 0, 1) for positions in ("none", "learned")]
        cells += [_cell(positions, seed, 2, longest=1024) for seed in range(2, 6) for positions in _VARIANTS]
        cells += [_cell(positions, seed, 1, steps=4000) for seed in range(3) for positions in _VARIANTS]
    return cells


def _cell(positions: str, seed: int, taps: int, steps: int = 700, longest: int = 256) -> Trial:
    return cell(NEEDLES, positions, seed, taps=taps, steps=steps, longest=longest, count=256)


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    from jobs.papers.gemini25 import recall_cells as cells

    return cells.needles(trial.method, trial.seed, **settings(trial))  # type: ignore[arg-type]


def claims(results: Results, scale: Scale) -> list[Claim]:
    """What the report states of its context, beside recall within a small one."""

    def found(positions: str | tuple[str, ...], metric: str = "recall", taps: int = 2, **at: Any) -> list[float]:
        return results.values(metric, experiment=NEEDLES, method=positions, taps=taps, **at)

    lengths = _lengths(results)
    beyond = tuple(length for length in lengths if length > TRAINED)
    far = 4 * TRAINED
    gaps = {
        positions: mean(found("none", step=far)) - mean(found(positions, step=far))
        for positions in ("rotary", "learned")
    }
    alone: dict[str, Any] = {"experiment": NEEDLES, "method": "rotary", "taps": 1, "steps": 700}
    values, matched = (results.mean(m, **alone, step=TRAINED) for m in ("some value", "recall"))
    return [
        Claim(
            "needles, no positions: recall at every length and depth, least",
            0.97, least(found("none")), 0.0, f"{_PROTOTYPE}: 0.99 to 1.00", "at least",
            stated="more than 1 M tokens of context: one second of a 46-minute video is recalled; of 8 needles (MRCR-V2) 58.0 % up to "
            "128k tokens and 16.4 % at 1 M. Such lengths cannot be shown here: 64 tokens are trained and 256 asked.",
        ),
        Claim("needles, no or rotary positions: recall at the trained length, least", 0.97, least(found(("none", "rotary"), step=TRAINED)), 0.0, f"{_PROTOTYPE}: 0.99", "at least"),
        Claim("needles, learned positions: recall at the trained length, least", 0.95, least(found("learned", step=TRAINED)), 0.0, f"{_PROTOTYPE}: 1.00", "at least"),
        Claim("needles, any positions: steps to a loss of 0.01, most", 500, most(found(_VARIANTS, "steps")), 0.0, f"{_PROTOTYPE}: 200 to 250", "at most"),
        Claim("needles, rotary: recall beyond the trained length, least", 0.95, least(found("rotary", step=beyond)), 0.0, f"{_PROTOTYPE}: 0.71", "at most"),
        Claim("needles, learned positions: recall beyond the trained length, least", 0.95, least(found("learned", step=beyond)), 0.0, f"{_PROTOTYPE}: 0.75", "at most"),
        Claim("needles: mean recall at four times the trained length, no positions less rotary", 0.03, gaps["rotary"], 0.0, f"{_PROTOTYPE}: 0.14", "at least"),
        Claim("needles: the same, no positions less learned ones", 0.03, gaps["learned"], 0.0, f"{_PROTOTYPE}: 0.05 to 0.25", "at least"),
        Claim("needles, rotary without the mix of neighbours: loss after 700 steps", 0.1, results.mean("final_loss", **alone), 0.0, f"{_PROTOTYPE}: 0.28 to 0.34 after 900", "at least"),
        Claim("needles, rotary without the mix: share of answers that are a value of the sequence, above the right ones", 0.02, values - matched, 0.0, f"{_PROTOTYPE}: finds the values, not the match", "at least"),
    ]  # fmt: skip


def _lengths(results: Results) -> list[int]:
    return sorted({row["step"] for row in results.rows(experiment=NEEDLES, metric="recall")})


def figures(results: Results) -> list[NamedFigure]:
    """Draw recall by depth and length as heat maps."""
    if not results.rows(experiment=NEEDLES):
        return []
    words = (
        "Share of needles recalled by the place of the needle (0: first token, 1: right before the question) and the length of the "
        "sequence, mean over seeds; 64 tokens were trained. Above with each position mixed with its predecessor before attention, "
        "below without; chance is 0.06, and 0.25 for any value of the sequence."
    )
    return [NamedFigure("Recall by depth and length", words, _heat_maps(results))]


def _heat_maps(results: Results) -> Figure:
    from jobs.drawing import panels

    shown = [
        (positions, taps)
        for taps in (2, 1)
        for positions in _VARIANTS
        if results.values("recall", experiment=NEEDLES, method=positions, taps=taps)
    ]
    columns = min(3, len(shown))
    figure, axes = panels(
        columns, math.ceil(len(shown) / columns), size=(3.2 * columns + 0.8, 2.6 * math.ceil(len(shown) / columns))
    )
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    for axis, (positions, taps) in zip(axes, shown, strict=False):
        at = {"experiment": NEEDLES, "method": positions, "taps": taps}
        lengths = sorted({row["step"] for row in results.rows(**at, metric="recall")})
        table = [[results.mean("recall", **at, step=n, environment=f"{d:.2f}") for d in DEPTHS] for n in lengths]
        image = axis.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for row, line in enumerate(table):
            for column, value in enumerate(line):
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize="small", color="black" if value > 0.6 else "white")  # fmt: skip
        axis.set_title(f"{positions}, {'with' if taps > 1 else 'without'} the mix", fontsize="medium")
        axis.set_xticks(range(len(DEPTHS)), [f"{d:g}" for d in DEPTHS])
        axis.set_yticks(range(len(lengths)), [str(n) for n in lengths])
        axis.set(xlabel="depth of the needle", ylabel="tokens")
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure
