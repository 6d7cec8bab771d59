"""report.html: one self-contained page made of the same table objects as the terminal shows, and inline plots."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from cluster.progress import format_duration
from jobs.report import plots
from jobs.report.papers import PaperSection
from jobs.report.sections import TableSection
from jobs.report.selection import RULES
from jobs.report.studies import StudySection
from jobs.report.tables import Results, dataset_names, method_order
from jobs.report.trainings import TrainingSection

FAILURES_SHOWN = 200


@dataclass(frozen=True)
class Summary:
    """What a run consists of.

    Args:
        statuses: number of trials by status.
        methods: in table order.
        datasets: names without fingerprints.
        records: number of (trial, checkpoint) pairs measured by completed trials.
        seeds: number of different seeds.
        started: when the first trial began, as text; "" if unknown.
        ended: when the last trial ended.
        busy: time spent in trials, summed over workers, as text.
        devices: number of trials by device.
        versions: by library, the versions that made the trials.
        failures: one record a failed trial, oldest first.
    """

    statuses: dict[str, int]
    methods: list[str]
    datasets: list[str]
    records: int
    seeds: int
    started: str
    ended: str
    busy: str
    devices: dict[str, int]
    versions: dict[str, str]
    failures: list[dict[str, Any]]

    @property
    def counts(self) -> str:
        """Trials by status in words, e.g. "240 trials completed, 2 failed"."""
        words = [f"{number} {status}" for status, number in self.statuses.items() if number and status != "completed"]
        return ", ".join([f"{_plural(self.statuses.get('completed', 0), 'trial')} completed", *words])


def summarise(trials: pa.Table, metrics: pa.Table) -> Summary:
    """Summarise a run's tables (schemas TRIALS and METRICS)."""
    rows = trials.drop_columns(["hyperparameters", "versions"])
    statuses = Counter(trials["status"].to_pylist())
    failed = rows.filter(pc.equal(rows["status"], "failed")).sort_by([("started_at", "ascending")])
    starts = [start for start in rows["started_at"].to_pylist() if start]
    seconds = [s or 0.0 for s in rows["seconds"].to_pylist()]
    ends = [
        start + dt.timedelta(seconds=s)
        for start, s in zip(rows["started_at"].to_pylist(), seconds, strict=True)
        if start
    ]
    names = dataset_names(sorted(set(trials["dataset"].to_pylist())))
    return Summary(
        statuses={status: statuses[status] for status in ("completed", "failed", "pruned") if statuses[status]},
        methods=method_order(trials["method"].to_pylist()),
        datasets=sorted(names.values(), key=str.casefold),
        records=metrics.group_by(["trial_id", "step"]).aggregate([]).num_rows,
        seeds=len(set(trials["seed"].to_pylist())),
        started=_moment(min(starts)) if starts else "",
        ended=_moment(max(ends)) if ends else "",
        busy=format_duration(sum(seconds)),
        devices=dict(Counter(d for d in trials["device"].to_pylist() if d).most_common()),
        versions=_versions(pc.unique(trials["versions"]).to_pylist()),
        failures=[{**row, "dataset": names[row["dataset"]]} for row in failed.to_pylist()],
    )


def _versions(texts: Iterable[str | None]) -> dict[str, str]:
    found: dict[str, set[str]] = defaultdict(set)
    for text in texts:
        for library, number in (json.loads(text) if text else {}).items():
            found[library].add(str(number))
    return {library: ", ".join(sorted(numbers)) for library, numbers in sorted(found.items())}


def _moment(when: dt.datetime) -> str:
    return when.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _readable(hyperparameters: str) -> str:
    values = json.loads(hyperparameters)
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def render(
    run_uri: str,
    trials: pa.Table,
    results: Results,
    summary: Summary,
    papers: Sequence[PaperSection] = (),
    certificates: Sequence[TableSection] = (),
    bounds: Sequence[TableSection] = (),
    studies: Sequence[StudySection] = (),
    trainings: Sequence[TrainingSection] = (),
    probes: Sequence[TableSection] = (),
) -> str:
    """Render the page.

    Args:
        run_uri: the run as the person named it.
        trials: rows of the schema TRIALS, those that are compared.
        results: from `tables.results`.
        summary: from `summarise`.
        papers: from `paper_sections`.
        certificates: from `certificate_sections`.
        bounds: from `bound_sections`.
        studies: from `study_sections`.
        trainings: from `training_sections`.
        probes: from `probe_sections`.

    Returns:
        HTML that needs no network and no other file; tables are readable without JavaScript.
    """
    styles = plots.method_styles(summary.methods)
    groups = [
        {
            "title": title,
            "curves": plots.learning_curves(results.records, group, styles),
            "dots": plots.trial_dots(results.records, group, styles),
            "legend": [(m, styles[m]) for m in _methods_of(results, group)],
        }
        for group, title in results.titles.items()
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(svg=lambda plot: Markup(plot.svg), readable=_readable, plural=_plural)  # noqa: S704 - our own
    return environment.get_template("report.html.j2").render(
        run=run_uri,
        name=run_uri.rstrip("/").rsplit("/", 1)[-1] or run_uri,
        summary=summary,
        papers=papers,
        certificates=certificates,
        bounds=bounds,
        studies=studies,
        trainings=trainings,
        probes=probes,
        rules=[(rule, [t for t in (*results.tables, *results.averages) if t.rule is rule]) for rule in RULES],
        groups=groups,
        times=[p for group, title in results.titles.items() for p in plots.trial_times(trials, group, title, styles)],
        failures_shown=FAILURES_SHOWN,
        made=_moment(dt.datetime.now(dt.UTC)),
        version=version("shiftlab"),
    )


def _methods_of(results: Results, group: tuple[str, str]) -> Sequence[str]:
    return next(list(t.rows) for t in results.tables if (t.dataset, t.budget) == group)
