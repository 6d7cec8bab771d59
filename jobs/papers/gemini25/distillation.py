"""Distillation from a k-sparse teacher: what is kept of a next-token distribution, what that costs, and what it teaches."""

from __future__ import annotations

import math
from typing import Any

from cluster.trial import Trial
from jobs.claims import Claim, MetricRow, NamedFigure, Results, Scale, cell, least, most, settings

CURVE, TEACHER, TARGETS = "gemini25/sparse_curve", "gemini25/sparse_teacher", "gemini25/sparse_targets"
EXPERIMENTS = (CURVE, TEACHER, TARGETS)

KEPT = (1, 2, 4, 8, 16, 64)
VOCABULARY = 64
_METHODS = ("hard", "full", "renorm", "uniform")
_PROTOTYPE = "ours, prototype"
_BAR = 0.5
"""Nats by which students differ at least; ours: those of three steps differ by less than 0.1."""
_COLOURS = {"renorm": "#d55e00", "uniform": "#0072b2"}


def plan(scale: Scale) -> list[Trial]:
    """Cells; the paper scale has more seeds, and a vocabulary of a real model's size."""
    paper = scale == "paper"
    cells = [cell(CURVE, method, seed, steps=600) for method in _METHODS for seed in range(8 if paper else 2)]
    cells += [cell(TEACHER, "transformer", seed, k=8, steps=600) for seed in range(8 if paper else 1)]
    cells += [cell(TARGETS, "storage", 0, vocabulary=VOCABULARY, k=8, tokens=4096)]
    cells += [cell(TARGETS, "storage", 0, vocabulary=32_768, k=64, tokens=512)]
    if paper:
        cells += [cell(TARGETS, "storage", 0, vocabulary=262_144, k=64, tokens=512)]
    return cells


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    from jobs.papers.gemini25 import distillation_cells as cells

    values = settings(trial)
    if trial.dataset == CURVE:
        return cells.curve(trial.method, trial.seed, **values)
    if trial.dataset == TEACHER:
        return cells.taught(trial.seed, **values)
    return cells.stored(trial.seed, **values)


def claims(results: Results, scale: Scale) -> list[Claim]:
    """What the report states of distillation, beside students of a source whose probabilities are known."""
    at: dict[str, Any] = {"experiment": CURVE}
    hard, full = (_by_seed(results, method=method, **at) for method in ("hard", "full"))

    def gap(tail: str, k: int, other: dict[int, float]) -> list[float]:
        found = _by_seed(results, method=tail, step=k, **at)
        return [value - other.get(seed, math.nan) for seed, value in found.items()]

    sparse = [-value for k in KEPT for value in gap("uniform", k, hard)]
    whole = [abs(value) for tail in ("renorm", "uniform") for value in gap(tail, VOCABULARY, full)]
    steps = [
        later - earlier
        for tail in ("renorm", "uniform")
        for small, large in zip(KEPT[:-1], KEPT[1:], strict=True)
        for later, earlier in zip(
            _by_seed(results, method=tail, step=large, **at).values(),
            _by_seed(results, method=tail, step=small, **at).values(),
            strict=True,
        )
    ]
    stored: dict[str, Any] = {"experiment": TARGETS, "vocabulary": 32_768}
    made = [
        Claim(
            "k-sparse teacher, tail uniform, any k of 64: KL from the truth below hard labels' by, least over k and seeds (nats)",
            _BAR,
            least(sparse),
            0.0,
            f"{_PROTOTYPE}: 2.26 or more",
            "at least",
            stated="models of Flash size and below are distilled; the teacher's next-token distribution is kept as a k-sparse one, "
            "which makes storage and data throughput k times as large, worth it for the better quality. The report gives no k and "
            "no figures; how much better its students are cannot be shown here.",
        ),
        Claim("KL(renormalised, teacher) + log m: largest over tokens and k, float64", 0.0, most(results.values("identity", experiment=TARGETS)), 3e-7, "derived, identity"),
        Claim("all of V kept against a student of all probabilities: difference in KL, largest (nats)", 0.0, most(whole), 0.02, "derived: they are the same loss"),
    ]  # fmt: skip
    for k in (1, 2):
        words = f"renormalised, k = {k}: KL from the truth above hard labels' by, least over seeds (nats)"
        stated = {1: "8.75 against 3.40", 2: "5.74 against 3.40"}[k]
        made.append(Claim(words, _BAR, least(gap("renorm", k, hard)), 0.0, f"{_PROTOTYPE}: {stated}", "at least"))
    better = [-value for value in gap("renorm", 8, hard)]
    made += [
        Claim("renormalised, k = 8: KL from the truth below hard labels' by, least over seeds (nats)", _BAR, least(better), 0.0, f"{_PROTOTYPE}: 1.08 against 3.40", "at least"),
        Claim("more kept: rise in KL from one k to the next, largest (nats)", 0.0, most(steps), 0.05, f"{_PROTOTYPE}: falls at every step", "at most"),
    ]  # fmt: skip
    for k, wanted in ((1, 0.218), (4, 0.543), (16, 0.927)):
        found = results.mean("mass", step=k, method="renorm", **at)
        made.append(Claim(f"the source: probability kept by k = {k}", wanted, found, 0.06, f"{_PROTOTYPE}: {wanted}"))
    taught: dict[str, Any] = {"experiment": TEACHER}
    labels = _by_seed(results, environment="hard", **taught)
    sparser = _by_seed(results, environment="uniform", **taught)
    gains = [labels.get(seed, math.nan) - value for seed, value in sparser.items()]
    wide = _by_seed(results, environment="full", **taught)
    lost = [value - wide.get(seed, math.nan) for seed, value in sparser.items()]
    return made + [
        Claim("trained teacher, k = 8, from a file: its student's KL from the truth below that of hard labels by, least (nats)", _BAR, least(gains), 0.0, "ours", "at least"),
        Claim("trained teacher: what k = 8 loses against all 64 probabilities, most (nats)", 0.35, most(lost), 0.0, "ours", "at most"),
        Claim("stored in 16 bits: probability moved a token, most", 1e-3, most(results.values("moved", experiment=TARGETS)), 0.0, "derived: 2^-11 of what is kept, and what is below 2^-25", "at most"),
        Claim("k = 64 of V = 32,768, 16-bit: bytes a token in the file over k", 6.0, results.mean("file", **stored) / 64, 0.2, "derived: 4 of an id, 2 of a probability, 4 / k of the mass"),
        Claim("the same: bytes of all probabilities in 32 bits over the file's", 300.0, results.mean("dense", **stored) / _positive(results.mean("file", **stored)), 0.0, "derived: 4 V / (6 k + 4) = 338", "at least"),
    ]  # fmt: skip


def _by_seed(results: Results, **conditions: Any) -> dict[int, float]:
    return {row["seed"]: row["value"] for row in results.rows(metric="kl", **conditions)}


def _positive(value: float) -> float:
    return value if value > 0 else math.nan


def figures(results: Results) -> list[NamedFigure]:
    """Draw the divergence from the truth over k."""
    from jobs.drawing import panels

    if not results.rows(experiment=CURVE, method=("renorm", "uniform")):
        return []
    figure, (axis,) = panels()
    for tail, colour in _COLOURS.items():
        ks, values = results.curve("kl", "step", experiment=CURVE, method=tail)
        axis.plot(ks, values, "o-", color=colour, label=f"k-sparse, {tail}")
    for method, style in (("hard", "--"), ("full", ":")):
        if results.values("kl", experiment=CURVE, method=method):
            height = results.mean("kl", experiment=CURVE, method=method)
            axis.axhline(height, color="black", linestyle=style, linewidth=0.9, label=f"{method} targets")
    axis.set(xlabel="probabilities kept, k of 64", ylabel="KL(truth || student), nats", xscale="log", yscale="log")
    axis.set_xticks(KEPT, [str(k) for k in KEPT])
    axis.legend(frameon=False, fontsize="small")
    words = (
        "Students of 2,000 tokens, mean over seeds. Renormalising pushes what was not kept towards 0: with one or two "
        "probabilities it is worse than the tokens alone. Spreading the rest over the others is better at every k."
    )
    return [NamedFigure("What a k-sparse teacher teaches", words, figure)]
