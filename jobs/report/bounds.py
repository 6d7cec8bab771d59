"""The error bounds of a run: predicted beside true errors, a table a source and a plot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.store import Run
from jobs.bound import BOUNDS, KEYS, METHOD
from jobs.claims import NamedFigure
from jobs.report.plots import inline_figure
from jobs.report.sections import PALETTE, TableSection, new_figure, plain

_WITHOUT = " w/o delta"
_MARKERS = "osDv^<>Pp*hH"


def of_bounds(trials: pa.Table) -> pa.ChunkedArray | pa.Array:
    """Say for each trial whether it is the bound of a target."""
    return pc.equal(trials["method"], METHOD)


def bound_sections(run: Run) -> list[TableSection]:
    """Collect a run's bounds, a section for each source, head and delta."""
    if "bounds" not in run.tables() and not run.location.is_local:
        return []
    rows = run.read_completed("bounds", BOUNDS, KEYS).to_pylist()
    deltas = {row["trial_id"]: row["delta"] for row in rows if row["kind"] == "bound"}
    groups: dict[tuple[str, str, float | None], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["source"], row["head"], deltas.get(row["trial_id"])), []).append(row)
    return [_section(*key, rows=group) for key, group in sorted(groups.items(), key=lambda item: str(item[0]))]


def _section(source: str, head: str, delta: float | None, rows: list[dict[str, Any]]) -> TableSection:
    targets = sorted({row["target"] for row in rows})
    short = {target: plain(target) for target in targets}
    if len(set(short.values())) < len(short):
        short = {target: target for target in targets}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    bounds = [row["method"] for row in rows if row["kind"] == "bound"]
    methods.sort(key=lambda method: (method not in bounds, _WITHOUT not in method))
    value: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        value.setdefault((row["target"], row["method"]), []).append(row["predicted_error"])
    mean = {key: float(np.mean(found)) for key, found in value.items()}
    truth = {row["target"]: row["true_error"] for row in rows if row["true_error"] is not None}
    cells = {}
    for target in targets:
        true = truth.get(target)
        words = ["–" if true is None else f"{true:.3f}"]
        for method in methods:
            if (target, method) not in mean:
                words.append("–")
                continue
            missed = true is not None and true > mean[target, method]
            words.append(f"{mean[target, method]:.3f}{'!' if missed else ''}")
        cells[short[target]] = words
    if len(truth) > 1:
        cells |= _summaries(methods, mean, truth)
    first = next((row for row in rows if row["kind"] == "bound"), None)
    notes = _notes(delta, first, bool(truth))
    title = f"{plain(source)}: error in {len(targets)} target{'' if len(targets) == 1 else 's'}"
    if head and not head.startswith("column"):
        title += f", head {head}"
    figures = inline_figure(lambda: [_figure(title, methods, set(bounds), mean, truth)]) if truth else []
    return TableSection(title, ["true", *methods], cells, {}, notes, figures)


def _summaries(methods: list[str], mean: dict[tuple[str, str], float], truth: dict[str, float]) -> dict[str, list[str]]:
    from lightning_modules.error_bounds.summary import summarise_estimates

    found = {}
    for method in methods:
        at = [target for target in truth if (target, method) in mean]
        found[method] = summarise_estimates([mean[t, method] for t in at], [truth[t] for t in at])
    return {
        "coverage": ["", *(f"{s.coverage:.3f}" for s in found.values())],
        "MAE": ["", *(f"{s.mae:.3f}" for s in found.values())],
        "overestimation of accuracy": ["", *(f"{s.overestimation:.3f}" for s in found.values())],
    }


def _notes(delta: float | None, first: dict[str, Any] | None, labelled: bool) -> list[str]:
    notes = []
    if first is not None and delta is not None:
        notes.append(
            f"Guaranteed: with probability at least {1 - delta:g} over the validation rows ({first['n_source']:,} of the source), "
            f"each target's error is at most its bound ({first['method']}), IF the true labelling is no worse for the "
            f"classifier than the most adversarial linear critic found. Nothing checks that assumption; it fails for features "
            f"trained to look alike in both domains. Each target's bound holds by itself, not all at once."
        )
    notes.append(
        "Everything else is an estimate and promises nothing; w/o delta is the bound without its concentration term."
    )
    if labelled:
        notes.append(
            "! marks a predicted error below the true one. True errors are measured on all labelled rows of a target and enter no "
            "prediction; overestimation is the mean over the targets marked."
        )
    else:
        notes.append("The targets have no labels, so nothing says here whether a bound held.")
    return notes


def _figure(
    title: str, methods: list[str], bounds: set[str], mean: dict[tuple[str, str], float], truth: dict[str, float]
) -> NamedFigure:
    figure, axes = new_figure()
    for number, method in enumerate(methods):
        at = [target for target in truth if (target, method) in mean]
        x, y = [truth[t] for t in at], [mean[t, method] for t in at]
        colour = PALETTE[number % len(PALETTE)]
        face = colour if method in bounds else "none"
        marker = _MARKERS[number % len(_MARKERS)]
        axes.scatter(x, y, s=26, marker=marker, facecolors=face, edgecolors=colour, linewidths=1.1, label=method)
    axes.plot([0, 1], [0, 1], color="#7f7f7f", linewidth=1, linestyle="--")
    largest = max(*truth.values(), *mean.values())
    axes.set_xlim(0, max(truth.values()) * 1.08 + 0.01)
    axes.set_ylim(0, min(1.02, largest * 1.08 + 0.01))
    axes.set_xlabel("true error")
    axes.set_ylabel("predicted error")
    axes.grid()
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    words = "A point a target; bounds are filled. Below the dashed line a method was too hopeful."
    return NamedFigure(f"{title}: predicted against true error", words, figure)
