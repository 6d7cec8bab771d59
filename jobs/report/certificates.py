"""The certificates of a run: accuracy against radius and against flipped labels, as tables and curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.store import Run
from jobs.certify import tables
from jobs.claims import NamedFigure
from jobs.report.plots import inline_figure
from jobs.report.sections import PALETTE, TableSection, finish, new_figure, plain

_RADIUS_STEPS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
_COLUMNS = 9
_FLIPS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_SURE = 0.001


def of_certificates(trials: pa.Table) -> pa.ChunkedArray | pa.Array:
    """Say for each trial whether it is the certificate of an example."""
    return pc.is_in(trials["method"], pa.array(tables.METHODS))


def certificate_sections(run: Run) -> list[TableSection]:
    """Collect a run's certificates, a section for each dataset and kind."""
    sections = []
    for table, section in (("certificates", _radius_section), ("flip_certificates", _flip_section)):
        if table in run.tables() or run.location.is_local:
            rows = tables.read(run, table)
            for dataset in sorted(set(rows["dataset"].to_pylist())):
                sections.append(section(dataset, rows.filter(pc.equal(rows["dataset"], dataset))))
    return sections


def _curves(rows: pa.Table, keys: Sequence[str], name: dict[str, str]) -> dict[str, pa.Table]:
    """Part rows by the keys and name each part by those that differ (the first key always)."""
    parts = rows.group_by(list(keys), use_threads=False).aggregate([]).to_pylist()
    differing = [k for k in keys if k == keys[0] or len({str(part[k]) for part in parts}) > 1]
    found: dict[str, pa.Table] = {}
    for part in sorted(parts, key=lambda part: [(v is None, str(type(v)), v) for v in part.values()]):
        chosen = rows
        for key, value in part.items():
            same = pc.is_null(chosen[key]) if value is None else pc.equal(chosen[key], value)
            chosen = chosen.filter(same)
        words = (name[key].format(plain(part[key])) for key in differing if part[key] is not None)
        found[", ".join(words)] = chosen
    return found


def _radius_section(dataset: str, rows: pa.Table) -> TableSection:
    from lightning_modules.certification.accuracy import (
        average_certified_radius,
        certified_accuracy,
        high_probability_accuracy,
    )

    keys = ("sigma", "model", "method", "precision", "noise", "alpha", "n0", "n", "seed")
    words = {
        "sigma": "sigma {}",
        "alpha": "alpha {}",
        "n0": "n0 {}",
        "n": "n {}",
        "seed": "seed {}",
        "noise": "{} noise",
    }
    curves = _curves(rows, keys, {key: words.get(key, "{}") for key in keys})
    data = {name: {c: t[c].to_numpy(zero_copy_only=False) for c in t.column_names} for name, t in curves.items()}
    radii = {name: np.where(d["skipped"], np.nan, d["radius"].astype(np.float64)) for name, d in data.items()}
    at = _columns(max((float(np.nanmax(r, initial=0.0)) for r in radii.values()), default=0.0))
    grid = {float(r) for name, d in data.items() if d["method"][0] == "smoothing-adaptive" for r in radii[name]}
    grid = {r for r in grid if r == r}
    if 1 < len(grid) <= _COLUMNS:  # between the points of an adaptive grid nothing was asked
        at = sorted(grid | {0.0})
    cells, accuracies, notes = {}, {}, []
    for name, d in data.items():
        accuracies[name] = certified_accuracy(d["prediction"], radii[name], d["label"], at)
        mean = average_certified_radius(d["prediction"], radii[name], d["label"])
        skipped = float(d["skipped"].mean())
        cells[name] = [f"{a:.3f}" for a in accuracies[name]] + [
            f"{(d['prediction'] == -1).mean():.3f}" + (f" ({skipped:.3f} skipped)" if skipped else ""),
            f"{mean:.3f}",
            f"{d['n_used'].mean():,.0f}",
            f"{d['seconds'].mean():.3g}",
            f"{len(d['idx']):,}",
        ]
        alpha = float(d["alpha"][0])
        if set(d["noise"]) == {"independent"} and len(d["idx"]) >= 30:
            sure = high_probability_accuracy(float(accuracies[name][0]), len(d["idx"]), alpha, _SURE)
            notes.append(
                f"{name}: at r = 0, {accuracies[name][0]:.3f} measured is at least {max(0.0, sure):.3f} in truth on these "
                f"examples, with probability {1 - _SURE:g}."
            )
    stated = sorted({(float(a), p) for d in data.values() for a, p in zip(d["alpha"], d["precision"], strict=True)})
    levels = ", ".join(f"{alpha:g}" for alpha in dict.fromkeys(alpha for alpha, _ in stated))
    notes.insert(
        0,
        f"Share of examples whose class is right and provably stays so under every l2 perturbation shorter than r. Each "
        f"example's certificate is wrong with probability at most alpha = {levels}, and is about the smoothed classifier, "
        f"computed in {', '.join(dict.fromkeys(p for _, p in stated))}. Abstentions count as errors.",
    )
    if any(set(d["noise"]) == {"shared"} for d in data.values()):
        notes.append("Shared noise: certificates hold one by one, but examples err together; no joint bound is given.")
    if any(d["skipped"].any() for d in data.values()):
        notes.append("Skipped: not certified because the guess was wrong already; counted as wrong.")
    columns = [f"r={r:g}" for r in at] + ["abstains", "ACR", "samples", "s each", "examples"]
    best = {i: max(accuracies, key=lambda name: accuracies[name][i]) for i in range(len(at))} if len(data) > 1 else {}
    figure = inline_figure(lambda: [_radius_figure(dataset, data, radii)])
    return TableSection(f"{plain(dataset)}: certified accuracy against l2 radius", columns, cells, best, notes, figure)


def _columns(largest: float) -> list[float]:
    step = next((s for s in _RADIUS_STEPS if largest / s < _COLUMNS), _RADIUS_STEPS[-1])
    return [i * step for i in range(int(largest / step + 1e-9) + 1)]


def _radius_figure(dataset: str, data: dict[str, dict[str, np.ndarray]], radii: dict[str, np.ndarray]) -> NamedFigure:
    from lightning_modules.certification.accuracy import certified_accuracy

    largest = max((float(np.nanmax(r, initial=0.0)) for r in radii.values()), default=0.0) or 1.0
    at = np.linspace(0, 1.02 * largest, 400)
    figure, axes = new_figure()
    values = [certified_accuracy(d["prediction"], radii[name], d["label"], at) for name, d in data.items()]
    if len(values) > 1:
        axes.plot(
            at, np.max(values, axis=0), color="#9aa0a6", linewidth=5, alpha=0.5, label="envelope", drawstyle="steps-pre"
        )
    for i, (name, value) in enumerate(zip(data, values, strict=True)):
        axes.plot(at, value, label=name, **_look(i))
    axes.set_xlabel("l2 radius")
    finish(axes, "certified accuracy")
    words = "A curve a setting; the envelope is the best of them at each radius." if len(values) > 1 else ""
    return NamedFigure(f"{plain(dataset)}: certified accuracy against l2 radius", words, figure)


def _flip_section(dataset: str, rows: pa.Table) -> TableSection:
    from lightning_modules.certification.label_flips import certified_accuracy_curve, median_flips

    keys = ("method", "q", "lam", "partitions", "features")
    words = {"q": "q {}", "lam": "lam {}", "partitions": "{} parts"}
    named = {key: words.get(key, "{}") for key in keys}
    curves: dict[str, tuple[pa.Table, str]] = {}
    smoothed = pc.equal(rows["method"], "smoothed ridge")
    for name, part in _curves(rows, keys, named).items():
        curves[name] = (part, "flips")
    exact = rows.filter(smoothed)
    if len(exact):  # the exact certificate of the plain rule, once a lam: it does not depend on q
        first = exact.filter(pc.equal(exact["q"], pc.min(exact["q"])))
        for name, part in _curves(first, ("lam", "features"), named).items():
            curves[f"plain ridge, exact, {name}"] = (part, "flips_exact")
    data = {
        name: tuple(
            part[c].to_numpy(zero_copy_only=False) for c in ("prediction", column, "label", "seconds", "abstain")
        )
        for name, (part, column) in curves.items()
    }
    largest = max((int(flips.max(initial=0)) for _, flips, *_ in data.values()), default=0)
    at = [r for r in _FLIPS if r <= largest] or [0]
    at = at if len(at) <= _COLUMNS + 2 else [0, *at[-(_COLUMNS + 1) :]]
    cells, accuracies = {}, {}
    for name, (prediction, flips, label, seconds, abstain) in data.items():
        accuracies[name] = certified_accuracy_curve(prediction, flips, label, at)
        never = name.startswith("plain ridge")
        cells[name] = [f"{a:.3f}" for a in accuracies[name]] + [
            f"{median_flips(prediction, flips, label):g}",
            f"{0 if never else abstain.mean():.3f}",
            f"{seconds.mean():.2g}",
            f"{len(label):,}",
        ]
    best = {i: max(accuracies, key=lambda name: accuracies[name][i]) for i in range(len(at))} if len(data) > 1 else {}
    notes = [
        "Share of test examples whose class is right and provably stays so when an adversary, who may choose anew for "
        "each example, changes up to r training labels. Deterministic: no sampling, no chance of error. Inputs, "
        "features, lam and q are trusted: they must not have been chosen with the training labels that may be wrong.",
        "The smoothed rule's certificate is never above the exact one of plain ridge with the same lam; median counts "
        "wrong and abstained as -1.",
    ]
    figure = inline_figure(lambda: [_flip_figure(dataset, data)])
    columns = [f"r={r:,}" for r in at] + ["median", "abstains", "s each", "examples"]
    return TableSection(
        f"{plain(dataset)}: certified accuracy against flipped labels", columns, cells, best, notes, figure
    )


def _flip_figure(dataset: str, data: dict[str, tuple[np.ndarray, ...]]) -> NamedFigure:
    from lightning_modules.certification.label_flips import certified_accuracy_curve

    largest = max((int(flips.max(initial=0)) for _, flips, *_ in data.values()), default=0) or 1
    at = np.unique(np.concatenate([[0], np.geomspace(1, largest + 1, 300).astype(np.int64)]))
    figure, axes = new_figure()
    for i, (name, (prediction, flips, label, *_)) in enumerate(data.items()):
        value = certified_accuracy_curve(prediction, flips, label, at)
        look = _look(i) | ({"linestyle": "--"} if name.startswith("plain ridge") else {})
        axes.plot(at, value, label=name, **look)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, largest + 1)
    axes.set_xlabel("flipped training labels")
    finish(axes, "certified accuracy")
    words = "Dashed: the exact certificate of plain ridge regression."
    return NamedFigure(f"{plain(dataset)}: certified accuracy against flipped labels", words, figure)


def _look(curve: int) -> dict[str, Any]:
    """Colours in turn, then dotted and dash-dotted again."""
    style = ("-", ":", "-.")[curve // len(PALETTE) % 3]
    return {"color": PALETTE[curve % len(PALETTE)], "linestyle": style, "linewidth": 1.6, "drawstyle": "steps-pre"}
