"""What probes of a training found: a table of the last measurement, curves over the steps, and the examples that stand out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.store import Run
from jobs.claims import NamedFigure
from jobs.probes import PROBE_EXAMPLES, costs, read_series
from jobs.report.plots import inline_figure
from jobs.report.sections import PALETTE, TableSection

_ITEMS = 6
_QUANTITIES = 6
_EXAMPLES = 10

Curves = dict[str, dict[str, list[tuple[int, float]]]]
"""By quantity and item, values by step."""


def probe_sections(run: Run, trials: pa.Table) -> list[TableSection]:
    """A section a training and probe.

    Args:
        run: whose tables `probe_series` and `probe_examples` are read.
        trials: its trials, for titles.
    """
    series = read_series(run)
    if not series:
        return []
    titles = {
        row["trial_id"]: row["method"].split(":")[-1] for row in trials.select(["trial_id", "method"]).to_pylist()
    }
    examples = run.read("probe_examples", PROBE_EXAMPLES)
    found: dict[tuple[str, str], Curves] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in series:
        if not row["quantity"].startswith("cost_"):
            found[row["trial_id"], row["probe"]][row["quantity"]][row["item"]].append((row["step"], row["value"]))
    return [
        _section(
            titles.get(trial_id, trial_id),
            probe,
            curves,
            costs(series, trial_id).get(probe),
            _of(examples, trial_id, probe),
        )
        for (trial_id, probe), curves in sorted(found.items())
    ]


def _of(examples: pa.Table, trial_id: str, probe: str) -> pa.Table:
    wanted = pc.and_(
        pc.equal(examples["trial_id"].cast(pa.string()), trial_id), pc.equal(examples["probe"].cast(pa.string()), probe)
    )
    return examples.filter(wanted)


def _section(
    title: str, probe: str, curves: Curves, cost: tuple[float, float] | None, examples: pa.Table
) -> TableSection:
    rows = {}
    for quantity, items in curves.items():
        for item, points in list(items.items())[:_ITEMS]:
            values = [value for _, value in points]
            name = f"{quantity} {item}".strip()
            rows[name] = [
                f"{points[-1][0]:,}",
                *(f"{v:.4g}" for v in (values[0], values[-1], min(values), max(values))),
            ]
    notes = []
    if cost is not None:
        notes.append(f"The probe took {cost[0]:.3g} s, {cost[1]:.0%} of the training's time.")
    notes += _standing_out(examples)
    drawn = {name: items for name, items in curves.items() if any(len(points) > 1 for points in items.values())}
    figures = inline_figure(lambda: [_figure(title, probe, drawn)]) if drawn else []
    return TableSection(
        f"{title}: {probe}", ["last step", "first", "last", "least", "largest"], rows, {}, notes, figures
    )


def _standing_out(examples: pa.Table) -> list[str]:
    """The examples with the largest mean |value| of each quantity."""
    found = []
    for quantity in pc.unique(examples["quantity"].cast(pa.string())).to_pylist():
        some = examples.filter(pc.equal(examples["quantity"].cast(pa.string()), quantity))
        means = pa.table({"example": some["example"], "size": pc.abs(some["value"])}).group_by("example")
        sizes = (
            means.aggregate([("size", "mean")]).sort_by([("size_mean", "descending")]).slice(0, _EXAMPLES).to_pylist()
        )
        words = ", ".join(f"{row['example']} ({row['size_mean']:.3g})" for row in sizes)
        found.append(f"Examples with the largest mean |{quantity.replace('_', ' ')}|: {words}.")
    return found


def _figure(title: str, probe: str, curves: Curves) -> NamedFigure:
    from matplotlib.figure import Figure

    names: Sequence[str] = list(curves)[:_QUANTITIES]
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.75 * columns, 2.4 * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    for number, axis in enumerate(axes.flat):
        if number >= len(names):
            axis.set_visible(False)
            continue
        for colour, (item, points) in zip(PALETTE, curves[names[number]].items(), strict=False):
            axis.plot(*zip(*points, strict=True), color=colour, linewidth=1.3, label=item or None)
        axis.set_title(names[number].replace("_", " "), fontsize="small")
        axis.grid(axis="y")
        if len(curves[names[number]]) > 1:
            axis.legend(fontsize="x-small")
        if number >= len(names) - columns:
            axis.set_xlabel("step")
    return NamedFigure(f"{title}: {probe}", f"What the probe {probe} measured, step by step.", figure)
