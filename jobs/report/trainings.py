"""The long trainings of a run: their loss as it went, on how many workers, and what happened meanwhile."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cluster.store import Run
from jobs.claims import NamedFigure
from jobs.report.plots import Plot, inline_figure

if TYPE_CHECKING:
    from rich.console import Console

_EVENTS = 20
_EVENTS_PRINTED = 8


@dataclass(frozen=True)
class TrainingSection:
    """What is shown of one training.

    Args:
        title: what was trained.
        facts: steps, workers and speed in words.
        events: what happened: moment, step, words.
        left_out: how many earlier events are not shown.
        figures: plots with captions.
    """

    title: str
    facts: str
    events: list[tuple[str, str, str]]
    left_out: int
    figures: list[tuple[Plot, str]]


def what_happened(run: Run) -> str:
    """Count in words what happened to workers and nodes; empty where nothing did."""
    kinds = Counter(row["kind"] for row in run.read("events").to_pylist() if row["trial_id"] is None)
    return ", ".join(f"{count:,} x {kind.replace('_', ' ')}" for kind, count in sorted(kinds.items()))


def training_sections(run: Run, trials: pa.Table) -> list[TrainingSection]:
    """Collect a run's long trainings.

    Args:
        run: whose tables `training` and `events` are read.
        trials: its trials; a training that goes on has none yet.
    """
    log = run.read("training").to_pylist()
    if not log:
        return []
    about = {row["trial_id"]: row for row in trials.to_pylist()}
    events = run.read("events").to_pylist()
    found = dict.fromkeys(row["trial_id"] for row in log)
    return [
        _section(
            trial_id,
            about.get(trial_id),
            [row for row in log if row["trial_id"] == trial_id],
            sorted((e for e in events if e["trial_id"] == trial_id), key=lambda e: e["at"]),
        )
        for trial_id in found
    ]


def _section(
    trial_id: str, trial: Mapping[str, Any] | None, log: list[dict[str, Any]], events: list[dict[str, Any]]
) -> TrainingSection:
    log = _without_undone(log)
    losses = {row["step"]: row["value"] for row in log if row["metric"] == "loss"}
    workers = {row["step"]: row["workers"] for row in log}
    speeds = [row["value"] for row in log if row["metric"] == "steps_per_second"][1:]
    last = log[-1]["step"]
    steps = json.loads(trial["budget"])["steps"] if trial is not None else None
    title = f"{trial['method']} on {trial['dataset'].split('@')[0]}" if trial is not None else f"Training {trial_id}"
    some = sorted(set(workers.values()))
    many = "1 worker" if some == [1] else f"{some[0]} workers" if len(some) == 1 else f"{some[0]} to {some[-1]} workers"
    facts = [f"step {last:,}" + (f" of {steps:,}" if steps is not None else ", not finished"), many]
    if speeds:
        facts.append(f"{sorted(speeds)[len(speeds) // 2]:.3g} steps/s (median)")
    facts.append(f"{len(events)} events" if len(events) != 1 else "1 event")
    shown = [_event(event) for event in events]
    return TrainingSection(
        title,
        ", ".join(facts),
        shown[-_EVENTS:],
        max(0, len(shown) - _EVENTS),
        inline_figure(lambda: [_figure(title, losses, workers, events)]) if len(losses) > 1 else [],
    )


def _without_undone(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what was undone: after a loss or a rewind steps are taken again, and their earlier rows do not count."""
    kept: list[dict[str, Any]] = []
    step = -1
    for row in sorted(log, key=lambda row: row["at"]):
        if row["step"] < step:
            kept = [earlier for earlier in kept if earlier["step"] < row["step"]]
        kept.append(row)
        step = row["step"]
    return kept


def _event(event: Mapping[str, Any]) -> tuple[str, str, str]:
    step = "" if event["step"] is None else f"{event['step']:,}"
    return f"{event['at']:%Y-%m-%d %H:%M:%S}", step, f"{event['kind'].replace('_', ' ')}: {event['detail']}"


def _figure(
    title: str, losses: Mapping[int, float], workers: Mapping[int, int], events: Sequence[Mapping[str, Any]]
) -> NamedFigure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    steps = sorted(losses)
    upper.plot(steps, [losses[step] for step in steps], color="#0072b2", linewidth=1.4)
    upper.set_ylabel("training loss")
    upper.grid(axis="y")
    for number, event in enumerate(e for e in events if e["step"] is not None):
        label = "something happened" if number == 0 else None
        upper.axvline(event["step"], color="#d55e00", linestyle=":", linewidth=1.2, label=label)
    if any(event["step"] is not None for event in events):
        upper.legend(fontsize="small")
    at = sorted(workers)
    lower.step(at, [workers[step] for step in at], where="post", color="#009e73", linewidth=1.6)
    lower.set_ylim(0, max(workers.values()) + 0.5)
    lower.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    lower.set_ylabel("workers")
    lower.set_xlabel("step")
    words = "Mean loss of the steps between two points; below, how many workers trained."
    return NamedFigure(f"{title}: training loss and workers", words, figure)


def print_sections(console: Console, sections: Sequence[TrainingSection]) -> None:
    """Print facts and the last events."""
    for section in sections:
        console.print(f"{section.title}: {section.facts}", markup=False, highlight=False, soft_wrap=True)
        for moment, step, words in section.events[-_EVENTS_PRINTED:]:
            at = f" at step {step}" if step else ""
            console.print(f"  {moment}{at}  {words}", style="dim", markup=False, highlight=False, soft_wrap=True)
    if sections:
        console.print()
