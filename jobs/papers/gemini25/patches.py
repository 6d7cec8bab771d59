"""Images and text in one sequence: sums of two handwritten digits, and what is left of them without the images."""

from __future__ import annotations

import math
from typing import Any

from cluster.trial import Trial
from jobs.claims import Claim, MetricRow, NamedFigure, Results, Scale, cell, settings

DIGITS = "gemini25/digit_sums"
EXPERIMENTS = (DIGITS,)

_ABLATIONS = {"blank": "blank images", "others": "images of another question", "second": "second image exchanged"}
_KNOWN = {"blank": "0.083", "others": "0.075", "second": "0.094"}
_PROTOTYPE = "ours, prototype"


def plan(scale: Scale) -> list[Trial]:
    """Cells; the paper scale has more seeds, and a larger decoder."""
    paper = scale == "paper"
    small: dict[str, Any] = {"steps": 900, "batch_size": 128, "lr": 2e-3}
    cells = [cell(DIGITS, "decoder", seed, **small) for seed in range(8 if paper else 3)]
    if paper:
        large = {**small, "steps": 3000, "lr": 1e-3, "width": 128, "layers": 4}
        cells += [cell(DIGITS, "decoder", seed, **large) for seed in range(3)]
    return cells


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    from jobs.papers.gemini25 import patches_cells as cells

    return cells.digits(trial.seed, **settings(trial))


def claims(results: Results, scale: Scale) -> list[Claim]:
    """What the report states of its inputs, beside questions about small images."""
    own = results.values("accuracy_own", experiment=DIGITS)
    made = [
        Claim(
            "sums of two digit images: accuracy on unseen images, least",
            0.9, min(own, default=math.nan), 0.0, f"{_PROTOTYPE}: 0.975", "at least",
            stated="native text, vision and audio input; 66 instead of 258 tokens a frame fit about 3 h instead of 1 h of video into 1 M "
            "tokens; MMMU 82.0 %. Neither video nor such benchmarks can be shown here: images are 8 by 8 pixels in 4 patches.",
        )
    ]  # fmt: skip
    for name, words in _ABLATIONS.items():
        most = max(results.values(f"accuracy_{name}", experiment=DIGITS), default=math.nan)
        known = f"{_PROTOTYPE}: {_KNOWN[name]}"
        made.append(Claim(f"sums of two digit images: accuracy with {words}, most", 0.15, most, 0.0, known, "at most"))
    constant = max(results.values("accuracy_constant", experiment=DIGITS), default=math.nan)
    words = "sums of two digit images: accuracy of the best constant answer, most"
    return [*made, Claim(words, 0.1, constant, 0.03, f"derived: 10 of 100 pairs sum to 9; {_PROTOTYPE}: 0.094")]


def figures(results: Results) -> list[NamedFigure]:
    """Draw accuracies with and without the images."""
    from jobs.drawing import panels

    if not results.rows(experiment=DIGITS):
        return []
    names = {"own": "its own images", **_ABLATIONS, "constant": "best constant"}
    figure, (axis,) = panels(size=(6.4, 3.4))
    heights = [results.mean(f"accuracy_{name}", experiment=DIGITS) for name in names]
    axis.barh(range(len(names)), heights, color=["#0072b2", *["#d55e00"] * len(_ABLATIONS), "#999999"])
    for place, height in enumerate(heights):
        axis.text(height + 0.01, place, f"{height:.2f}", va="center")
    axis.set_yticks(range(len(names)), list(names.values()))
    axis.invert_yaxis()
    axis.set(xlabel="accuracy on unseen images", xlim=(0, 1.1))
    words = (
        "Sum of two handwritten digits from 4 + 4 patches, mean over seeds. Without the right images nothing is left."
    )
    return [NamedFigure("The answers come from the images", words, figure)]
