"""What a paper's file in jobs/papers/ is made of: cells (trials), the results they stored, claims and figures.

`jobs/papers/NAME.py` has these and nothing else that is public:
    TITLE, SOURCE: the paper's title; authors, venue and arXiv number.
    plan(scale): the trials of "small" or "paper" scale, each one independent cell of the paper's experiments.
    run(trial): computes one cell and returns its metric rows.
    claims(results, scale): each statement of the paper beside what was measured.
    figures(results): the paper's central figures, drawn from the stored results alone.
It may have a NOTE: what a reader of its claims must know, in a sentence or two, shown with them.
A paper whose cells read a person's own data also has `missing(trial, data)`, which says what a cell lacks in the folder
`data` (None: nothing), and then `run(trial, data)`.
`shiftlab reproduce NAME` executes the plan on Ray, stores the rows, and shows the claims; a rerun resumes.
"""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import jobs.papers
from cluster.trial import Scalar, Trial

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

MetricRow = tuple[int, str, str, str, float]
"""(step, environment, split, metric, value), as the table `metrics` has them after trial_id."""

Scale = Literal["small", "paper"]
Relation = Literal["equals", "at least", "at most"]


@dataclass(frozen=True)
class Claim:
    """One statement, its figure, and the figure measured now.

    Args:
        name: the statement in a few words, unique within the paper.
        reference: the figure it states; a threshold where `relation` is "at least" or "at most".
        measured: what came out now; NaN where the cells that it needs failed.
        tolerance: how far `measured` may lie beyond `reference`.
        source: where the reference is from: "paper" only for what the paper itself states; else "derived", "ours",
            "field standard" or the like, with the place (e.g. "paper, theorem 5.1"; "ours, prototype").
        relation: how the two compare.
        stated: what the paper itself states, in a sentence, where what is measured here is something smaller.
    """

    name: str
    reference: float
    measured: float
    tolerance: float
    source: str
    relation: Relation = "equals"
    stated: str = ""

    @property
    def holds(self) -> bool:
        """Whether the measured figure is as claimed; False for NaN."""
        gap = self.measured - self.reference
        if math.isnan(gap):
            return False
        if self.relation == "equals":
            return abs(gap) <= self.tolerance
        return gap >= -self.tolerance if self.relation == "at least" else gap <= self.tolerance


@dataclass(frozen=True)
class NamedFigure:
    """A figure with its caption: what it shows and what to see in it."""

    title: str
    caption: str
    figure: Figure


def cell(experiment: str, method: str, seed: int = 0, **settings: Scalar) -> Trial:
    """Make the trial of one cell: `experiment` becomes its dataset, `settings` its hyperparameters."""
    return Trial.create(method, experiment, (), settings, seed)


def settings(trial: Trial) -> dict[str, Any]:
    """Return the settings a cell was made with."""
    return dict(json.loads(trial.hyperparameters))


class Results:
    """The metric rows of a paper's cells, to be asked for figures by experiment, method and setting.

    Args:
        trials: table `trials` of the run.
        metrics: table `metrics` of the run.
        plan: the cells to look at; rows of other trials in the run are left out.
    """

    def __init__(self, trials: pa.Table, metrics: pa.Table, plan: Iterable[Trial]) -> None:
        wanted = {t.trial_id: t for t in plan}
        completed = {
            row["trial_id"]
            for row in trials.select(["trial_id", "status"]).to_pylist()
            if row["status"] == "completed" and row["trial_id"] in wanted
        }
        self._rows: list[dict[str, Any]] = []
        for row in metrics.to_pylist():
            if row["trial_id"] in completed:
                trial = wanted[row["trial_id"]]
                self._rows.append(
                    {**settings(trial), "experiment": trial.dataset, "method": trial.method, "seed": trial.seed, **row}
                )

    def rows(self, **conditions: Any) -> list[dict[str, Any]]:
        """Rows that meet the conditions, each a dict of the cell's settings, experiment, method, seed and metric row.

        A condition is NAME=VALUE or NAME=(VALUES, ...); rows come sorted by seed, then step.
        """
        found = [row for row in self._rows if all(_meets(row.get(k), v) for k, v in conditions.items())]
        return sorted(found, key=lambda row: (row["seed"], row["step"]))

    def values(self, metric: str, **conditions: Any) -> list[float]:
        """Values of a metric in the rows that meet the conditions."""
        return [row["value"] for row in self.rows(metric=metric, **conditions)]

    def mean(self, metric: str, **conditions: Any) -> float:
        """Mean of `values`; NaN if there are none."""
        values = self.values(metric, **conditions)
        return math.fsum(values) / len(values) if values else math.nan

    def curve(self, metric: str, along: str, **conditions: Any) -> tuple[list[Any], list[float]]:
        """Mean of a metric at each value of the setting `along` (or of "step"), sorted."""
        at = sorted({row[along] for row in self.rows(metric=metric, **conditions)})
        return at, [self.mean(metric, **{**conditions, along: x}) for x in at]


def _meets(value: Any, condition: Any) -> bool:
    return value in condition if isinstance(condition, tuple | list | set) else value == condition


def scalar_rows(values: dict[str, float], step: int = 0, environment: str = "", split: str = "test") -> list[MetricRow]:
    """Turn named figures into metric rows."""
    return [(step, environment, split, name, float(value)) for name, value in values.items()]


def least(values: Sequence[float]) -> float:
    """The smallest; NaN where there are none, or one is NaN."""
    return math.nan if not values or any(map(math.isnan, values)) else min(values)


def most(values: Sequence[float]) -> float:
    """The largest; NaN where there are none, or one is NaN."""
    return math.nan if not values or any(map(math.isnan, values)) else max(values)


def mean(values: Sequence[float]) -> float:
    """The mean; NaN where there are none."""
    return math.fsum(values) / len(values) if values else math.nan


def claim_rows(paper: str, scale: str, at: Any, claims: Sequence[Claim]) -> list[tuple[Any, ...]]:
    """Rows of the table `claims`."""
    return [
        (
            paper,
            c.name,
            c.reference,
            c.measured,
            c.tolerance,
            c.holds,
            c.source,
            c.relation,
            scale,
            at,
            c.stated or None,
        )
        for c in claims
    ]


def paper_names() -> list[str]:
    """Names of the papers: the files in jobs/papers/."""
    return sorted(module.name for module in pkgutil.iter_modules(jobs.papers.__path__))


def load_paper(name: str) -> ModuleType:
    """Import a paper's file."""
    return importlib.import_module(f"jobs.papers.{name}")


def reference(value: float, tolerance: float, relation: str) -> str:
    """Write a claim's reference with its relation and tolerance."""
    sign = {"at least": ">= ", "at most": "<= "}.get(relation, "")
    return f"{sign}{number(value)}" + (f" +/- {number(tolerance)}" if tolerance else "")


def number(value: float) -> str:
    """Write a figure with four significant digits."""
    return f"{value:.4g}"
