"""The Optuna studies of a run: what was found, by Optuna's own figures, and what the score has seen.

Everything is computed from the table `suggestions`: it builds the study anew, wherever its storage has gone.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.progress import format_duration
from cluster.store import Run
from jobs.objectives import OBJECTIVES, ORACLE
from jobs.report.study_figures import StudyFigures, study_figures
from tuning.tables import SUGGESTIONS

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial
    from rich.console import Console

_BEST = 10
_BEST_PRINTED = 5
_FAILURES = 5
_WORDS = {"complete": "complete", "pruned": "pruned", "fail": "failed", "waiting": "without a result yet"}


@dataclass(frozen=True)
class StudySection:
    """What is shown of one study.

    Args:
        title: name of the study.
        counts: trials by state in words, and the best value.
        facts: counts, objectives and wall time.
        seen: what the score was measured on.
        oracle: whether that was the held-out environment itself.
        columns: of the table of best trials: number, objectives, parameters, state.
        rows: the best trials, best first; Pareto-optimal ones where there are several objectives.
        notes: what the table and the figures mean, and what is missing.
        drawn: Optuna's figures.
    """

    title: str
    counts: str
    facts: str
    seen: str
    oracle: bool
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    drawn: StudyFigures


def suggestions(run: Run) -> pa.Table:
    """Read a run's suggestions (schema SUGGESTIONS); none where it holds no study."""
    if "suggestions" in run.tables() or run.location.is_local:
        return run.read("suggestions", SUGGESTIONS)
    return SUGGESTIONS.empty_table()


def of_studies(trials: pa.Table, rows: pa.Table) -> pa.ChunkedArray | pa.Array:
    """Say for each trial whether a study asked for it."""
    return pc.is_in(trials["trial_id"], pc.unique(pc.list_flatten(rows["trial_ids"])))


def study_sections(rows: pa.Table, trials: pa.Table) -> list[StudySection]:
    """Collect a run's studies, by name.

    Args:
        rows: of the schema SUGGESTIONS.
        trials: of the schema TRIALS, those of the run.
    """
    held_out = dict(zip(*(trials[c].to_pylist() for c in ("trial_id", "held_out")), strict=True)) if len(rows) else {}
    ordered = sorted(rows.to_pylist(), key=lambda row: row["study"])
    with _quiet() if ordered else contextlib.nullcontext():
        return [_section(list(found), held_out) for _, found in groupby(ordered, key=lambda row: row["study"])]


def rebuild(rows: Sequence[Mapping[str, Any]]) -> optuna.Study:
    """Build a study anew, in memory, from what its run holds.

    Of several rows for a number (a launch was killed between study and run) the last complete one counts, else the
    last. A number without a row becomes a waiting trial, so that all others keep theirs. Times are UTC, without a zone.

    Args:
        rows: of one study, as dicts of the schema SUGGESTIONS; at least one.
    """
    import optuna

    latest: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        known = latest.get(row["number"])
        if known is None or row["state"] == "complete" or known["state"] != "complete":
            latest[row["number"]] = row
    first = rows[0]
    with _quiet():
        study = optuna.create_study(
            storage=optuna.storages.InMemoryStorage(), study_name=first["study"], directions=first["directions"]
        )
        study.set_metric_names(first["objectives"])
        for number in range(max(latest) + 1):
            if number in latest:
                study.add_trial(_trial(latest[number]))
            else:
                study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING))
    return study


def _trial(row: Mapping[str, Any]) -> FrozenTrial:
    from tuning.rows import from_row

    trial = from_row(row)
    trial.datetime_start, trial.datetime_complete = _utc(row["started_at"]), _utc(row["ended_at"])
    return trial


def _utc(moment: dt.datetime) -> dt.datetime:
    return moment.astimezone(dt.UTC).replace(tzinfo=None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's log, and its and matplotlib's warnings about odd studies, off the screen."""
    from tuning.study import quiet_optuna

    with quiet_optuna(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _section(rows: list[dict[str, Any]], held_out: Mapping[str, Sequence[str] | None]) -> StudySection:
    study, objectives = rebuild(rows), list(rows[0]["objectives"])
    trials = study.get_trials(deepcopy=False)
    states = Counter(t.state.name.lower() for t in trials)
    counts = ", ".join(f"{states[state]:,} {word}" for state, word in _WORDS.items() if states[state])
    # The space's order, as far as it shows: conditional parameters are missing in some.
    fullest = sorted(trials, key=lambda t: -len(t.distributions))
    parameters = list(dict.fromkeys(name for t in fullest for name in t.distributions))
    ranked = _ranked(study)
    notes = [f"{name}: {OBJECTIVES[name][1]}" for name in objectives if name in OBJECTIVES and name != ORACLE]
    if len(objectives) > 1:
        notes.append(
            f"{_plural(len(ranked), 'trial')} Pareto-optimal: none is better in one objective and as good in all others."
            + (f" Shown: the {_BEST} best by {objectives[0]}." if len(ranked) > _BEST else "")
        )
    elif any(t.state.name == "PRUNED" for t in ranked[:_BEST]):
        notes.append("Of a pruned trial the value is the last that it reported.")
    failed = [t for t in trials if t.state.name == "FAIL"]
    for t in failed[:_FAILURES]:
        notes.append(f"Trial {t.number} failed: {' '.join(str(t.user_attrs.get('error', 'no error stored')).split())}")
    if len(failed) > _FAILURES:
        notes.append(f"{len(failed) - _FAILURES:,} more failed.")
    notes.append(
        "The trials of a study were chosen by what earlier ones scored, so they take no part in tables that compare methods."
    )
    drawn = study_figures(study, objectives, parameters)
    aims = ", ".join(f"{d} {name}" for d, name in zip(rows[0]["directions"], objectives, strict=True))
    seen, oracle = _seen(objectives, [held_out[i] for row in rows for i in row["trial_ids"] or [] if i in held_out])
    return StudySection(
        title=study.study_name,
        counts=counts + _best_values(study, objectives, ranked),
        facts=f"{counts}; {aims}; {_wall_time(trials)}",
        seen=seen,
        oracle=oracle,
        columns=["Trial", *objectives, *parameters, "State"],
        rows=[_row(t, len(objectives), parameters) for t in ranked[:_BEST]],
        notes=[*notes, *drawn.missing],
        drawn=drawn,
    )


def _ranked(study: optuna.Study) -> list[FrozenTrial]:
    """The best trials first (pruned ones last), or the Pareto-optimal ones by the first objective."""
    sign = 1 if study.directions[0].name == "MINIMIZE" else -1
    trials = study.best_trials if len(study.directions) > 1 else study.get_trials(deepcopy=False)
    scored = [t for t in trials if t.state.name in ("COMPLETE", "PRUNED") and t.values]
    return sorted(scored, key=lambda t: (t.state.name, sign * t.values[0], t.number))


def _best_values(study: optuna.Study, objectives: Sequence[str], ranked: Sequence[FrozenTrial]) -> str:
    complete = [t for t in ranked if t.state.name == "COMPLETE"]
    if not complete:
        return "; none has a final value"
    if len(objectives) == 1:
        return f"; best {objectives[0]} {_text(complete[0].values[0])} (trial {complete[0].number})"
    best = (
        f"best {name} {_text((min if direction.name == 'MINIMIZE' else max)(t.values[i] for t in complete))}"
        for i, (name, direction) in enumerate(zip(objectives, study.directions, strict=True))
    )
    return f"; {len(complete):,} Pareto-optimal, {', '.join(best)}"


def _row(trial: FrozenTrial, objectives: int, parameters: Sequence[str]) -> list[str]:
    values = trial.values or [None] * objectives
    state = trial.state.name.lower()
    if state == "pruned" and trial.last_step is not None:
        state += f" at step {trial.last_step}"
    return [str(trial.number), *map(_text, values), *(_text(trial.params.get(name, "–")) for name in parameters), state]


def _text(value: Any) -> str:
    return f"{value:.{4 if abs(value) < 1e4 else 7}g}" if isinstance(value, float) else str(value)


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _wall_time(trials: Sequence[FrozenTrial]) -> str:
    starts = [t.datetime_start for t in trials if t.datetime_start]
    ends = [t.datetime_complete for t in trials if t.datetime_complete]
    seconds = (max(ends) - min(starts)).total_seconds()
    return f"{format_duration(seconds)} from first start ({min(starts):%Y-%m-%d %H:%M} UTC) to last end"


def _seen(objectives: Sequence[str], held_out: Sequence[Sequence[str] | None]) -> tuple[str, bool]:
    """Say in words whether the score has seen what the trials are tested on."""
    names = ", ".join(sorted({name for found in held_out for name in found or ()}))
    if ORACLE in objectives:
        return (
            f"Oracle: the score was measured on the held-out environment itself{names and f' ({names})'}. These figures "
            "are an upper bound that no user could select by: whoever meets a new environment has no labels of it.",
            True,
        )
    if held_out and not names:
        return (
            "No environment was held out: the score says nothing about environments outside the training data.",
            False,
        )
    return (
        f"The score never saw the held-out environment{names and f' ({names})'}: it was measured on training environments "
        "alone.",
        False,
    )


def print_sections(console: Console, sections: Sequence[StudySection]) -> None:
    """Print a line a study, what its score has seen where that is the held-out environment, and its best trials."""
    from rich.table import Table
    from rich.text import Text

    for section in sections:
        console.print(f"{section.title}: {section.counts}", markup=False, highlight=False, soft_wrap=True)
        if section.oracle:
            console.print(
                f"warning: {section.seen}", style="bold yellow", markup=False, highlight=False, soft_wrap=True
            )
        if section.rows:
            table = Table(box=None, pad_edge=False, header_style="dim")
            for column in section.columns:
                table.add_column(Text(column), justify="right", overflow="fold")
            for row in section.rows[:_BEST_PRINTED]:
                table.add_row(*map(Text, row))
            console.print(table)
        console.print()
