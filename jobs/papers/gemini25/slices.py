"""Training that survives: slices that come and go, silent corruption, and the time that is left for computing."""

from __future__ import annotations

import math
from typing import Any

from cluster.trial import Trial
from jobs.claims import Claim, MetricRow, NamedFigure, Results, Scale, cell, least, most, settings

ELASTIC, CORRUPTION, GOODPUT = "gemini25/elastic", "gemini25/corruption", "gemini25/goodput"
EXPERIMENTS = (ELASTIC, CORRUPTION, GOODPUT)

_FAULTS = ("none", "bit", "stuck", "sign")
_AUDIT = 10
_WAITING: dict[str, Any] = {"lost": 600.0, "recovery": 0.0, "throughput": 0.0}
_GOING_ON: dict[str, Any] = {"lost": 30.0, "recovery": 600.0, "throughput": 0.97}
_PROTOTYPE = "ours, prototype"
_DERIVED = "derived, closed form"


def plan(scale: Scale) -> list[Trial]:
    """Cells; the paper scale has more seeds, steps and slices."""
    paper = scale == "paper"
    small: dict[str, Any] = {"slices": 8, "shards": 8, "steps": 120}
    cells = [cell(ELASTIC, "slices", seed, **small, lost=2, at=40, back=80) for seed in range(5 if paper else 1)]
    if paper:
        cells.append(cell(ELASTIC, "slices", 0, slices=32, shards=64, steps=1000, lost=5, at=300, back=700))
    for fault in _FAULTS:
        for seed in range(20 if paper else 3):
            cells.append(cell(CORRUPTION, "detector", seed, **small, fault=fault, audit_every=_AUDIT))
    for per_hour in (3.0, 4.0, 5.0):
        for way in (_WAITING, _GOING_ON):
            cells.append(cell(GOODPUT, "formula", 0, per_hour=per_hour, **way))
    return cells


def run(trial: Trial) -> list[MetricRow]:
    """Compute one cell."""
    from jobs.papers.gemini25 import slices_cells as cells

    values = settings(trial)
    if trial.dataset == ELASTIC:
        return cells.elastic(trial.seed, **values)
    if trial.dataset == CORRUPTION:
        return cells.corruption(trial.seed, **values)
    return cells.time_lost(seed=trial.seed, **values)


def claims(results: Results, scale: Scale) -> list[Claim]:
    """What the report states of its infrastructure, beside what slices of one machine do."""
    return [*_elastic(results), *_corruption(results), *_goodput(results)]


def _elastic(results: Results) -> list[Claim]:
    def found(metric: str, way: str) -> list[float]:
        return results.values(metric, experiment=ELASTIC, environment=way, slices=8, split="test")

    made = [
        Claim(
            "elastic training: weights equal to the undisturbed run's, to the bit, though slices left and came back",
            1.0,
            least(found("identical", "redeal")),
            0.0,
            "ours: shards follow from the step, sums from the shards' order",
            stated="training goes on with fewer slices of accelerators after a failure, at about 97 % of the throughput, and loses tens of "
            "seconds an interruption where waiting took 10 minutes and more. Pods in several data centres cannot be shown here: "
            "slices are processes of one machine.",
        )
    ]
    if found("lost_seconds", "killed"):
        made += [
            Claim("elastic: a slice killed within a step: weights equal to the bit", 1.0, least(found("identical", "killed")), 0.0, "ours"),
            Claim("elastic: seconds that its step lost, most", 30.0, most(found("lost_seconds", "killed")), 0.0, "paper: tens of seconds an interruption", "at most"),
        ]  # fmt: skip
    return made + [
        Claim("elastic: loss of the first step, mean", math.log(10), results.mean("loss_first", experiment=ELASTIC), 1e-9, _DERIVED + ": log 10"),
        Claim("elastic: test accuracy, least", 0.92, least(found("accuracy", "undisturbed")), 0.0, f"{_PROTOTYPE}: 0.9405 on a split of its own", "at least"),
        Claim("elastic: rounds of a step with 6 of 8 slices", 2.0, most(found("rounds_degraded", "redeal")), 0.0, _DERIVED + ": ceil(8 / 6)"),
        Claim("elastic: rounds once they are back", 1.0, most(found("rounds_after", "redeal")), 0.0, _DERIVED),
        Claim("dropping the lost shards instead: rounds of a step", 1.0, most(found("rounds_degraded", "drop")), 0.0, _DERIVED),
        Claim("dropping: share of runs with the undisturbed bits", 0.0, most(found("identical", "drop")), 0.0, "ours: the trajectory changes"),
        Claim("dropping: test accuracy lost, most", 0.02, most([a - b for a, b in zip(found("accuracy", "undisturbed"), found("accuracy", "drop"), strict=True)]), 0.0, "ours", "at most"),
    ]  # fmt: skip


def _corruption(results: Results) -> list[Claim]:
    def found(metric: str, fault: str, way: str) -> list[float]:
        return results.values(metric, experiment=CORRUPTION, fault=fault, environment=way)

    struck = {fault: found("first_strike", fault, "detect") for fault in _FAULTS}
    late = [a - b for a, b in zip(found("found_at", "bit", "detect"), struck["bit"], strict=True)]
    audits = [at % _AUDIT for at in found("found_at", "sign", "audit")]
    blamed = [*found("blamed_right", "bit", "detect"), *found("blamed_right", "stuck", "detect")]
    return [
        Claim(
            "silent corruption: share of runs in which the broken slice, and no other, was excluded",
            1.0,
            sum(blamed) / len(blamed) if blamed else math.nan,
            0.0,
            "ours",
            stated="a suspicious step is replayed at once and checksums find the culprit within minutes: 0.25 % of the steps were "
            "replayed, 6 % of these were real corruption. How often hardware errs cannot be shown here: faults are put in.",
        ),
        Claim("bit flips, unseen: log10 of the largest error in the weights, least", 290.0, least(found("log10_difference", "bit", "blind")), 0.0, f"{_PROTOTYPE}: weights near 1e305", "at least"),
        Claim("bit flips, unseen: test accuracy, most", 0.9, most(found("accuracy", "bit", "blind")), 0.0, f"{_PROTOTYPE}: 0.773", "at most"),
        Claim("bit flips, detected: weights equal to the bit", 1.0, least(found("identical", "bit", "detect")), 0.0, _PROTOTYPE),
        Claim("bit flips, detected: steps from the first flip to the exclusion, most", 0.0, most(late), 0.0, _PROTOTYPE),
        Claim("bit flips, detected: replays, most", 1.0, most(found("replays", "bit", "detect")), 0.0, _PROTOTYPE),
        Claim("stuck slice: found at step, most", 0.0, most(found("found_at", "stuck", "detect")), 0.0, _PROTOTYPE),
        Claim("stuck slice: weights equal to the bit", 1.0, least(found("identical", "stuck", "detect")), 0.0, _PROTOTYPE),
        Claim("sign flips without audits: steps replayed, most", 0.0, most(found("replayed_steps", "sign", "detect")), 0.0, _PROTOTYPE),
        Claim("sign flips without audits: log10 of the error in the weights, least", -5.0, least(found("log10_difference", "sign", "detect")), 0.0, f"{_PROTOTYPE}: -2.3", "at least"),
        Claim(f"sign flips, every {_AUDIT}th step audited: the slice is excluded", 1.0, least(found("blamed_right", "sign", "audit")), 0.0, _PROTOTYPE),
        Claim("sign flips: steps between the audit that found it and an audit, most", 0.0, most(audits), 0.0, "ours: errors between audits stay, exposure 1 - 1/N = 0.9"),
        Claim("no fault: steps replayed in 120, most", 0.0, most(found("replayed_steps", "none", "detect")), 0.0, _PROTOTYPE),
        Claim("no fault: slices excluded, most", 0.0, most([*found("excluded", "none", "detect"), *found("excluded", "none", "audit")]), 0.0, _PROTOTYPE),
    ]  # fmt: skip


def _goodput(results: Results) -> list[Claim]:
    def found(metric: str, per_hour: float, way: dict[str, Any]) -> float:
        return results.mean(metric, experiment=GOODPUT, per_hour=per_hour, **way)

    gaps = [
        abs(found("goodput", per_hour, way) - found("simulated", per_hour, way))
        for per_hour in (3.0, 4.0, 5.0)
        for way in (_WAITING, _GOING_ON)
    ]
    return [
        Claim(
            "goodput: share of the time that computes, 4 interruptions an hour of 30 s, then 600 s at 97 %",
            0.934,
            found("goodput", 4.0, _GOING_ON),
            0.02,
            "paper: 93.4 % in all; interruptions an hour are our reading of its figures",
            stated="93.4 % of the time went to computation; about half of the rest was elastic reconfiguration, half rare cases where "
            "elasticity failed. Nothing of that is measured here: this is arithmetic.",
        ),
        Claim("goodput: 3 an hour without elasticity", 0.5, found("goodput", 3.0, _WAITING), 1e-9, _DERIVED),
        Claim("goodput: 3 an hour with it", 0.96, found("goodput", 3.0, _GOING_ON), 1e-9, _DERIVED),
        Claim("goodput: 5 an hour without elasticity", 1 / 6, found("goodput", 5.0, _WAITING), 1e-9, _DERIVED),
        Claim("goodput: 5 an hour with it", 0.9333, found("goodput", 5.0, _GOING_ON), 1e-4, _DERIVED),
        Claim("goodput: formula against simulation, largest gap", 0.0, most(gaps), 0.002, _PROTOTYPE),
    ]  # fmt: skip


def figures(results: Results) -> list[NamedFigure]:
    """Draw the losses of an elastic run, and goodput against interruptions."""
    from jobs.drawing import panels

    drawn = []
    if results.rows(experiment=ELASTIC, metric="loss"):
        figure, (axis,) = panels()
        for way, style in (("undisturbed", "-"), ("redeal", "--"), ("drop", ":")):
            steps, losses = results.curve("loss", "step", experiment=ELASTIC, environment=way, slices=8)
            axis.plot(steps, losses, style, label=way)
        axis.axvspan(40, 80, alpha=0.12, color="grey", label="2 of 8 slices away")
        axis.set(xlabel="step", ylabel="loss", yscale="log")
        axis.legend(frameon=False)
        words = "Dealing lost shards again gives the undisturbed run's bits and takes two rounds a step; leaving them out keeps the time and changes the run."
        drawn.append(NamedFigure("Slices leave and come back", words, figure))
    if results.rows(experiment=CORRUPTION):
        figure, (axis,) = panels()
        ways = ("blind", "detect", "audit")
        for n, way in enumerate(ways):
            heights = [results.mean("accuracy", experiment=CORRUPTION, fault=f, environment=way) for f in _FAULTS]
            axis.bar([k + 0.27 * (n - 1) for k in range(len(_FAULTS))], heights, 0.25, label=way)
        axis.set_xticks(range(len(_FAULTS)), ["no fault", "bit flips", "stuck", "sign flips"])
        axis.set(ylabel="test accuracy", ylim=(0, 1))
        axis.legend(frameon=False, loc="lower left")
        drawn.append(
            NamedFigure(
                "What silent corruption costs",
                "Mean over seeds. A sign that flips is survived by this model; bits that flip are not.",
                figure,
            )
        )
    return drawn
