"""Randomized smoothing: certified l2 radii of any classifier, their price, and attacks that must not succeed inside."""

from __future__ import annotations

import math
from typing import Any

from cluster.errors import InputError
from cluster.trial import Trial
from jobs.claims import Claim, MetricRow, NamedFigure, Relation, Results, Scale, cell, settings
from jobs.papers.randomized_smoothing.digits import run_digits
from jobs.papers.randomized_smoothing.names import (
    CLEAN,
    CONSISTENCY,
    DENOISED,
    DIGITS,
    LEVEL,
    LINEAR,
    MACER,
    NAME,
    NOISE,
    RATIOS,
    REPLAY,
    SMOOTHADV,
    TARGET,
)
from jobs.papers.randomized_smoothing.published import CHUNK, NETWORKS, RADII, TABLE, files, run_published
from jobs.papers.randomized_smoothing.replays import run_level, run_linear, run_replay, run_target

TITLE = "Certified Adversarial Robustness via Randomized Smoothing"
SOURCE = "J. Cohen, E. Rosenfeld, J. Z. Kolter; ICML 2019; arXiv 1902.02918"


REPLAYED = (0.770, 0.626, 0.461, 0.303, 0.174, 0.085, 0.034)
"""Certified accuracy with fixed n in the prototype's replay, at r = 0, 0.25, ..."""


def plan(scale: Scale) -> list[Trial]:
    """List the cells: one trained network each (with all that is certified of it), or one replayed experiment."""
    if scale == "paper":
        images = 500
        return [
            cell(experiment, NOISE, sigma=sigma, first=first, images=CHUNK)
            for experiment, sigma in TABLE
            for first in range(0, images, CHUNK)
        ]
    # The longest first, so that nobody waits for them at the end.
    trained = [
        (NOISE, 0.5, 10),
        (DENOISED, 0.5, 10),
        (MACER, 0.5, 10),
        (SMOOTHADV, 0.5, 6),
        (CONSISTENCY, 0.5, 10),
        (NOISE, 0.25, 10),
    ]
    trained += [(NOISE, 1.0, 10), (NOISE, 0.12, 10), (CLEAN, 0.0, 10)]
    trials = []
    for method, sigma, epochs in trained:
        more: dict[str, Any] = {"lam": 5.0} if method == CONSISTENCY else {}
        trials.append(cell(DIGITS, method, sigma=sigma, epochs=epochs, images=200, **more))
    trials += [cell(LINEAR, "certify", points=400, dimensions=20, sigma=0.5, n=100_000)]
    trials.append(cell(REPLAY, "stages", sigma=0.5, n=100_000, images=2000))
    for kind in ("cp", "eprocess"):
        trials.append(cell(REPLAY, kind, sigma=0.5, n=100_000, images=2000))
        trials += [cell(LEVEL, kind, p=p, alpha=0.05, n=5000, paths=40_000) for p in (0.6, 0.8413, 0.9772, 0.99865)]
        trials += [cell(TARGET, kind, p=p, n=100_000, paths=4000) for p in (0.99, 0.95, 0.90, 0.87)]
    return trials


def missing(trial: Trial, data: str) -> str | None:
    """Say what a cell lacks in the folder `data`; None for nothing."""
    if trial.dataset not in NETWORKS:
        return None
    for path, what in files(trial, data).values():
        if not data or not path.exists():
            return what
    return None


def run(trial: Trial, data: str = "") -> list[MetricRow]:
    """Compute one cell.

    Raises:
        InputError: for a trial of another experiment.
    """
    if trial.dataset == DIGITS:
        return run_digits(trial, **settings(trial))
    if trial.dataset == LINEAR:
        return run_linear(trial, **settings(trial))
    if trial.dataset == REPLAY:
        return run_replay(trial, **settings(trial))
    if trial.dataset == LEVEL:
        return run_level(trial, **settings(trial))
    if trial.dataset == TARGET:
        return run_target(trial, **settings(trial))
    if trial.dataset in NETWORKS:
        return run_published(trial, data, **settings(trial))
    raise InputError(f"experiment: unknown {trial.dataset!r}; plan() lists those of {NAME}")


def claims(results: Results, scale: Scale) -> list[Claim]:
    """Compare what the paper and its analysis say with what was measured."""
    found: list[Claim] = []

    def add(
        name: str, relation: Relation, reference: float, measured: float, source: str, tolerance: float = 0
    ) -> None:
        found.append(Claim(name, reference, measured, tolerance, source, relation))

    if scale == "paper":
        for (experiment, sigma), table in TABLE.items():
            where = {"experiment": experiment, "sigma": sigma}
            radii, right = results.values("radius", **where), results.values("right", **where)
            if not radii:
                continue
            short = experiment.rsplit("/", 1)[1]
            for r, reference in zip(RADII[experiment], table, strict=True):
                share = sum(o and d >= r for d, o in zip(radii, right, strict=True)) / len(radii)
                name = f"{short}, sigma {sigma:g}: certified accuracy at r = {r:g} ({len(radii)} images)"
                add(name, "equals", reference, share, "paper, by the authors' published logs", 0.03)
        return found

    paper, derived, ours = "paper, results", "derived", "ours, prototype"

    def digits(metric: str, at: float, method: str = NOISE, **more: Any) -> float:
        return results.mean(metric, experiment=DIGITS, method=method, environment=f"sigma={at:g}", **more)

    linear = {"experiment": LINEAR}
    add(
        "Half-space, 400 points: radii above the true distance",
        "at most",
        3,
        results.mean("above", **linear),
        "paper, theorem 1; 0.4 expected",
    )
    add("Half-space: median gap to the true radius", "equals", 0.008, results.mean("median_gap", **linear), ours, 0.004)
    largest = results.mean("largest", **linear)
    add("Half-space: largest radius, the cap of n = 100,000", "equals", 1.9057, largest, derived, 0.001)
    for ratio, reference in zip(RATIOS, (0.96, 0.94, 0.87, 0.79, 0.69), strict=True):
        measured = digits(f"certified(r/sigma={ratio:g})", 0.5, sigma=0.5)
        add(f"Digits, sigma 0.5: certified accuracy at r = {ratio:g} sigma", "equals", reference, measured, ours, 0.06)
    rates = [digits("abstain", s, sigma=s) for s in (0.25, 0.5, 1.0)]
    add("Digits: abstention rises with sigma, 0.25 to 0.5", "at least", 0, rates[1] - rates[0], paper)
    add("Digits: abstention rises with sigma, 0.5 to 1", "at least", 0, rates[2] - rates[1], paper)
    near = digits("certified(r/sigma=0)", 0.25, sigma=0.25) - digits("certified(r/sigma=0)", 1.0, sigma=1.0)
    add("Digits: small sigma has the higher accuracy at r = 0 (0.25 above 1)", "at least", 0, near, paper)
    far = results.mean(
        "certified_accuracy", experiment=DIGITS, method=NOISE, environment="sigma=1", sigma=1.0, step=125
    )
    close = results.mean(
        "certified_accuracy", experiment=DIGITS, method=NOISE, environment="sigma=0.25", sigma=0.25, step=125
    )
    add("Digits: large sigma certifies further (sigma 1 above 0.25 at r = 1.25)", "at least", 0.05, far - close, paper)
    same = digits("certified(r/sigma=0)", 0.5, sigma=0.5)
    for other in (0.25, 1.0):
        gap = same - digits("certified(r/sigma=0)", 0.5, sigma=other)
        name = f"Digits, certified at sigma 0.5: trained at 0.5 is best, above {other:g} at r = 0"
        add(name, "at least", 0, gap, paper)
    clean = same - digits("certified(r/sigma=0)", 0.5, CLEAN)
    add("Digits, certified at sigma 0.5: loss at r = 0 of training without noise", "at least", 0.15, clean, ours)
    acr = digits("acr", 0.5, sigma=0.5)
    gain = digits("acr", 0.5, CONSISTENCY) - acr
    add(
        "Digits: consistency raises the average certified radius",
        "at least",
        0.02,
        gain,
        "Jeong & Shin 2020; margin ours",
    )
    gain = digits("acr", 0.5, SMOOTHADV) - acr
    add(
        "Digits: SmoothAdv raises the average certified radius",
        "at least",
        0,
        gain,
        "Salman et al. 2019, MNIST figures of others",
    )
    gain = digits("acr", 0.5, MACER) - acr
    add(
        "Digits: MACER raises the average certified radius",
        "at least",
        0,
        gain,
        "Zhai et al. 2020, MNIST figures of others",
    )
    gain = digits("certified(r/sigma=0)", 0.5, DENOISED) - digits("certified(r/sigma=0)", 0.5, CLEAN)
    add(
        "Digits: a denoiser before a network trained without noise gains at r = 0",
        "at least",
        0.05,
        gain,
        "Salman et al. 2020; margin ours",
    )
    where = {"environment": "sigma=0.5", "sigma": 0.5}
    changed = digits("inside_changed", 0.5, sigma=0.5)
    add(
        "Digits: PGD on the smoothed network within 0.99 of the radius changes predictions",
        "at most",
        0,
        changed,
        "paper, theorem 1",
    )
    beyond = results.mean("beyond_changed", **where) / results.mean("attacked", **where)
    add("Digits: share changed with 3 times the radius (the attack works)", "at least", 0.5, beyond, "ours")
    for low, high in ((100, 1000), (1000, 10_000)):
        drop = digits("predict_abstain", 0.5, sigma=0.5, step=low) - digits(
            "predict_abstain", 0.5, sigma=0.5, step=high
        )
        add(f"Digits: PREDICT abstains less with n = {high:,} than with {low:,}", "at least", 0, drop, paper)
    samples = digits("predict_samples", 0.5, sigma=0.5)
    add("Digits: mean samples of sequential PREDICT, where 1,000 are usual", "at most", 200, samples, ours)
    ratio = digits("fixed_samples", 0.5, sigma=0.5) / digits("adaptive_samples", 0.5, sigma=0.5)
    add("Digits, n = 10,000: times fewer samples when stopping early", "at least", 2.5, ratio, ours)
    gap = digits("largest_gap", 0.5, sigma=0.5)
    add("Digits, n = 10,000: largest difference of a column when stopping early", "at most", 0.04, gap, ours)
    for kind in ("cp", "eprocess"):
        where = {"experiment": REPLAY, "method": kind}
        samples = results.mean("samples", **where)
        add(f"Replay, {kind}: mean samples of 100,000", "at most", 10_000, samples, ours)
        losses = []
        for step, reference in zip(range(0, 175, 25), REPLAYED, strict=True):
            value = results.mean("fixed", step=step, **where)
            losses.append(value - results.mean("adaptive", step=step, **where))
            if kind == "cp":
                add(f"Replay: fixed n, certified at r = {step / 100:g}", "equals", reference, value, ours, 0.003)
        loss = math.nan if any(map(math.isnan, losses)) else max(losses)
        add(f"Replay, {kind}: largest loss of a column by stopping early", "at most", 0.005, loss, ours)
        for p in (0.6, 0.8413, 0.9772, 0.99865):
            false = results.mean("false", experiment=LEVEL, method=kind, p=p)
            add(f"False certificates at the boundary p = {p:g}, {kind}, alpha 0.05", "at most", 0.05, false, derived)
        for p in (0.99, 0.95, 0.90, 0.87):
            over = results.mean("over_floor", experiment=TARGET, method=kind, p=p)
            add(f"Samples to certify sigma at p = {p:g} over the floor, {kind}", "at most", 2, over, ours)
    stages = results.mean("samples", experiment=REPLAY, method="stages")
    many = results.mean("samples", experiment=REPLAY, method="cp")
    add("Replay: samples of three stages over those of many looks", "at least", 1, stages / many, ours)
    above = results.mean("above_fixed", experiment=REPLAY, method="cp")
    add("Replay: certificates above those of fixed n on the same path", "at most", 0, above, ours)
    for p in (0.6, 0.8413, 0.9772, 0.99865):
        peeking = results.mean("false_when_peeking", experiment=LEVEL, method="cp", p=p)
        add(f"Peeking at a fixed-n bound instead errs more, p = {p:g}", "at least", 0.08, peeking, ours, 0.005)
    return found


def figures(results: Results) -> list[NamedFigure]:
    """Draw certified accuracy against radius by sigma and by training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    where: dict[str, Any] = {"experiment": DIGITS}
    for sigma in (0.12, 0.25, 0.5, 1.0):
        at = {**where, "method": NOISE, "sigma": sigma, "environment": f"sigma={sigma:g}"}
        steps, values = results.curve("certified_accuracy", "step", **at)
        left.plot([s / 100 for s in steps], values, label=f"sigma {sigma:g}", drawstyle="steps-pre")
    for method in (NOISE, CONSISTENCY, SMOOTHADV, MACER, DENOISED, CLEAN):
        at = {**where, "method": method, "environment": "sigma=0.5", "sigma": 0.0 if method == CLEAN else 0.5}
        steps, values = results.curve("certified_accuracy", "step", **at)
        right.plot([s / 100 for s in steps], values, label=method, drawstyle="steps-pre")
    left.set_title("trained and certified with the same noise", fontsize="medium")
    right.set_title("certified at sigma 0.5, by training", fontsize="medium")
    left.set_ylabel("certified accuracy")
    for axes in (left, right):
        axes.set_xlabel("l2 radius")
        axes.set_ylim(0, 1)
        axes.grid(axis="y")
        axes.legend(fontsize="small")
    caption = (
        "Left: more noise trades accuracy near the image for certificates far from it; n = 2,000 samples cap each curve at "
        "2.7 sigma. Right: what training does to it."
    )
    return [NamedFigure("Certified accuracy against radius, 200 digits", caption, figure)]
