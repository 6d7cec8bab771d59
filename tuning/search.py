"""Turns an Optuna study into trials for the cluster, and what they measure into the study's results.

A suggestion is one trial of Optuna's; it is run as N replicates, trials of ours that differ in their seed, one after the
other. The study hears every evaluation while a replicate trains and can end the suggestion there, or between replicates.
Nothing here runs a trial: `next` gives what to run, `decide` hears reports, `take` hears outcomes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from cluster.trial import Scalar, Trial
from cluster.worker import Report
from tuning.convergence import Convergence
from tuning.rows import from_row, to_row
from tuning.search_space import Space

Rows = Sequence[Sequence[Any]]
"""Rows of the metrics table without trial_id."""


class Objective(Protocol):
    """What a study optimises, computed from what trials measure."""

    @property
    def names(self) -> Sequence[str]:
        """What they are called."""

    @property
    def directions(self) -> Sequence[str]:
        """minimize or maximize, one an objective."""

    def final(self, trial: Trial, rows: Rows, seconds: float) -> list[float]:
        """Score a trial that is complete, one value an objective."""

    def at_step(self, trial: Trial, rows: Rows) -> float:
        """Score one evaluation, by the first objective."""


@dataclass(frozen=True)
class Ended:
    """How a trial ended: status completed, pruned or failed, its metrics, its seconds and the error's first line."""

    status: str
    rows: Rows
    seconds: float
    error: str = ""


@dataclass
class Recovered:
    """What a search found of an earlier launch."""

    rerun: int = 0
    told: int = 0
    restored: int = 0

    def __str__(self) -> str:
        """In words; "" if there was nothing to recover."""
        parts = [
            (self.restored, "put back into the study from the run"),
            (self.told, "already measured, now told"),
            (self.rerun, "cut short, run again"),
        ]
        return ", ".join(f"{number} {what}" for number, what in parts if number)


@dataclass
class _Suggestion:
    """A suggestion on its way."""

    trial: optuna.trial.Trial
    parameters: dict[str, Scalar]
    replicates: list[Trial] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    reported: set[int] = field(default_factory=set)
    again: bool = False
    """Whether a stored failure does not count."""


class Search:
    """One study on its way to a number of finished suggestions.

    Args:
        study: the study; this process is the only one that changes it.
        space: what is searched.
        objective: computes values from metrics.
        make: makes the trial of a suggestion's replicate from its parameters and the replicate's number.
        trials: suggestions to finish, those finished before included.
        seeds: replicates of a suggestion.
        steps: parameter updates of a replicate: the resource that pruners count in.
        pairwise: report each replicate's score, as the Wilcoxon pruner compares them, instead of every evaluation.
        stored: how a trial ended that the run holds already, by trial_id; None if it does not.
        rows: the study's rows of the run's table `suggestions`, as dictionaries.
        convergence: decides whether the study may end early; None: never.
        enqueue: parameters to be tried first, once in the study's life.
        retry_failed: ask for the parameters of failed suggestions once more, beyond `trials`.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        objective: Objective,
        make: Callable[[Mapping[str, Scalar], int], Trial],
        trials: int,
        *,
        seeds: int = 1,
        steps: int = 1,
        pairwise: bool = False,
        stored: Callable[[str], Ended | None] = lambda _: None,
        rows: Iterable[Mapping[str, Any]] = (),
        convergence: Convergence | None = None,
        enqueue: Sequence[Mapping[str, Scalar]] = (),
        retry_failed: bool = False,
    ) -> None:
        self.study = study
        self.first_error = ""
        self._space, self._objective, self._make = space, objective, make
        self._budget, self._seeds, self._steps, self._pairwise = trials, seeds, steps, pairwise
        self._stored = stored
        self._convergence = convergence
        self._on_way: dict[int, _Suggestion] = {}
        self._running: dict[str, list[_Suggestion]] = {}
        self._known: dict[str, Ended] = {}
        self._ready: deque[_Suggestion] = deque()
        self._rows: list[tuple[Any, ...]] = []
        self._exhausted = False
        self.recovered = Recovered()
        self.completed = self.pruned = self.failed = 0
        # Of several rows for one number (a launch was killed between study and run) a complete one counts.
        known = sorted(rows, key=lambda row: row["state"] == "complete")
        self._recover({row["number"]: row for row in known}, retry_failed)
        if convergence is not None and self.finished:
            convergence.consider(study, self.finished)
            convergence.wait()
        if not study.get_trials(deepcopy=False):
            for parameters in enqueue:
                study.enqueue_trial(dict(parameters))

    # What there is to do

    @property
    def finished(self) -> int:
        """Suggestions that have ended, those of earlier launches included."""
        return self.completed + self.pruned + self.failed

    @property
    def trials(self) -> int:
        """Suggestions to finish."""
        return self._budget

    @property
    def best(self) -> float | None:
        """Best value so far; None before the first, and for several objectives, which have no best."""
        return self.study.best_value if self._reports and self.completed else None

    @property
    def asked(self) -> int:
        """Suggestions that have ended or are on their way."""
        return self.finished + len(self._on_way)

    @property
    def converged(self) -> bool:
        """Whether the study was found to have converged."""
        return self._convergence is not None and self._convergence.reached

    @property
    def exhausted(self) -> bool:
        """Whether the sampler has tried all there is."""
        return self._exhausted

    @property
    def done(self) -> bool:
        """Whether nothing is left to run."""
        return not self._on_way and not self._may_ask()

    def next(self) -> Trial | None:
        """Give the next trial to run; None when there is none until more is known, or at all (`done`)."""
        while True:
            if self._ready:
                suggestion = self._ready.popleft()
            elif self._may_ask():
                suggestion = self._ask()
            else:
                return None
            trial = self._make(suggestion.parameters, len(suggestion.replicates))
            suggestion.replicates.append(trial)
            if trial.trial_id in self._running:  # suggested twice: one run serves both
                self._running[trial.trial_id].append(suggestion)
                continue
            known = self._known.get(trial.trial_id) or self._stored(trial.trial_id)
            if known is None or (known.status == "failed" and suggestion.again):
                self._running[trial.trial_id] = [suggestion]
                return trial
            self._end_replicate(suggestion, trial, known)

    def decide(self, reports: Iterable[Report]) -> list[str]:
        """Hear reports of running trials; returns the ids of those that are to end."""
        ending = []
        for report in reports:
            # Of a trial that serves several suggestions: it ends when none of them wants it any longer.
            answers = [self._hear(s, report) for s in self._running.get(report.trial_id, [])]
            if answers and all(answers):
                ending.append(report.trial_id)
        return ending

    def take(self, trial: Trial, ended: Ended) -> None:
        """Hear how a trial ended."""
        if self._space.finite:
            self._known[trial.trial_id] = ended
        for suggestion in self._running.pop(trial.trial_id, []):
            self._end_replicate(suggestion, trial, ended)

    def parameters(self, trial: FrozenTrial) -> dict[str, Scalar]:
        """Everything that was set in a trial of the study, fixed values included."""
        return {**self._space.fixed, **trial.params}

    def stop(self) -> None:
        """Give back what is on its way: it waits in the study until a search goes on with it."""
        for suggestion in self._on_way.values():
            self.study._storage.set_trial_state_values(suggestion.trial._trial_id, TrialState.WAITING)

    def rows(self) -> list[tuple[Any, ...]]:
        """Rows for the table `suggestions` since the last call."""
        rows, self._rows = self._rows, []
        return rows

    # Asking

    def _may_ask(self) -> bool:
        return self.asked < self._budget and not self.converged and not self._exhausted

    def _ask(self) -> _Suggestion:
        trial = self.study.ask()
        # One that a stopped launch gave back has values already.
        return self._begin(trial, self.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    def _begin(self, trial: optuna.trial.Trial, reported: Iterable[int]) -> _Suggestion:
        parameters = self._space.suggest(trial)
        again = "retry_of" in trial.user_attrs
        suggestion = _Suggestion(trial, parameters, reported=set(reported), again=again)
        self._on_way[trial.number] = suggestion
        return suggestion

    # Hearing

    def _hear(self, suggestion: _Suggestion, report: Report) -> bool:
        """Take up an evaluation of the running replicate; returns whether the suggestion is to be pruned."""
        self._report(suggestion, report.step, report.rows)
        return self._reports and suggestion.trial.should_prune()

    @property
    def _reports(self) -> bool:
        return len(self._objective.names) == 1  # Optuna's pruners know one objective

    def _report(self, suggestion: _Suggestion, step: int, rows: Rows) -> None:
        if self._reports and not self._pairwise:
            value = self._objective.at_step(suggestion.replicates[-1], rows)
            finals = [score[0] for score in suggestion.scores]
            # Replicates stand one behind the other on the axis of steps, each value the estimate of the mean so far.
            self._put(suggestion, len(finals) * self._steps + step, (sum(finals) + value) / (len(finals) + 1))

    @staticmethod
    def _put(suggestion: _Suggestion, step: int, value: float) -> None:
        if step not in suggestion.reported and math.isfinite(value):  # a trial that was tried again reports again
            suggestion.reported.add(step)
            suggestion.trial.report(value, step)

    def _end_replicate(self, suggestion: _Suggestion, trial: Trial, ended: Ended) -> None:
        if ended.status == "failed":
            self._fail(suggestion, ended.error)
            return
        for step, rows in _by_step(ended.rows):  # what was not heard in time
            self._report(suggestion, step, rows)
        if ended.status == "pruned":
            self._finish(suggestion, TrialState.PRUNED)
            return
        values = self._objective.final(trial, ended.rows, ended.seconds)
        if not all(map(math.isfinite, values)):
            self._fail(suggestion, f"the score is {values}")
            return
        suggestion.scores.append(values)
        count = len(suggestion.scores)
        if self._pairwise and self._reports:
            self._put(suggestion, count - 1, values[0])
        if count == self._seeds:
            means = [sum(column) / count for column in zip(*suggestion.scores, strict=True)]
            self._finish(suggestion, TrialState.COMPLETE, means)
        elif self._reports and suggestion.trial.should_prune():
            self._finish(suggestion, TrialState.PRUNED)
        else:
            self._ready.append(suggestion)

    def _fail(self, suggestion: _Suggestion, error: str) -> None:
        suggestion.trial.set_user_attr("error", error)
        self.first_error = self.first_error or error
        self._finish(suggestion, TrialState.FAIL)

    def _finish(self, suggestion: _Suggestion, state: TrialState, values: list[float] | None = None) -> None:
        trial = suggestion.trial
        trial.set_user_attr("trial_ids", [t.trial_id for t in suggestion.replicates])
        if len(suggestion.scores) > 1:
            trial.set_user_attr("scores", suggestion.scores)
        del self._on_way[trial.number]
        try:
            frozen = self.study.tell(trial, values, state)
        except RuntimeError as error:
            # Samplers of finite spaces end a study this way; the trial is told by then.
            if "Study.stop" not in str(error):
                raise
            self._exhausted = True
            frozen = self.study.get_trials(deepcopy=False)[trial.number]
        self._count(state)
        self._rows.append(self._row(frozen))
        if self._convergence is not None:
            self._convergence.consider(self.study, self.finished)

    def _count(self, state: TrialState) -> None:
        self.completed += state == TrialState.COMPLETE
        self.pruned += state == TrialState.PRUNED
        self.failed += state == TrialState.FAIL

    def _row(self, trial: FrozenTrial) -> tuple[Any, ...]:
        distributions = self._space.to_json(only=trial.params)
        return to_row(self.study.study_name, trial, distributions, self._objective.names, self._objective.directions)

    # Recovering

    def _recover(self, rows: Mapping[int, Mapping[str, Any]], retry_failed: bool) -> None:
        """Make the study and the run agree, and take up what was running when an earlier launch ended."""
        trials = self.study.get_trials(deepcopy=False)
        unfinished = [t for t in trials if t.state == TrialState.RUNNING]
        for number in range(len(trials), max(rows, default=-1) + 1):
            # The run knows more than the storage: a mirror that was cut off, or a journal that is gone. Numbers stay.
            if number in rows:
                self.study.add_trial(from_row(rows[number]))
                self.recovered.restored += 1
            else:
                asked = self._ask()
                self._ready.append(asked)
                self.recovered.rerun += 1
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state.is_finished():
                self._count(trial.state)
                if trial.number not in rows:
                    self._rows.append(self._row(trial))
            elif trial.state == TrialState.WAITING and trial.params:
                self.recovered.rerun += 1
        for trial in unfinished:
            if trial.number in rows:
                self._tell(trial, rows[trial.number])
                self.recovered.told += 1
                continue
            suggestion = self._begin(optuna.trial.Trial(self.study, trial._trial_id), trial.intermediate_values)
            first = self._make(suggestion.parameters, 0)
            if self._stored(first.trial_id) is None:
                self.recovered.rerun += 1
            else:
                self.recovered.told += 1
            self._ready.append(suggestion)
        if retry_failed:
            self._retry_failed()

    def _tell(self, trial: FrozenTrial, row: Mapping[str, Any]) -> None:
        """Tell the study how a trial ended by the run's row, which may know parameters that the storage does not."""
        known, storage, key = from_row(row), self.study._storage, trial._trial_id
        for name, value in known.params.items():
            if name not in trial.params:
                distribution = known.distributions[name]
                storage.set_trial_param(key, name, distribution.to_internal_repr(value), distribution)
        for step, value in known.intermediate_values.items():
            if step not in trial.intermediate_values:
                storage.set_trial_intermediate_value(key, step, value)
        for name, attribute in known.user_attrs.items():
            storage.set_trial_user_attr(key, name, attribute)
        storage.set_trial_state_values(key, known.state, known.values)
        self._count(known.state)

    def _retry_failed(self) -> None:
        """Ask for the parameters of every failed suggestion once more, beyond the budget."""
        trials = self.study.get_trials(deepcopy=False)
        retried = {t.user_attrs.get("retry_of") for t in trials}
        for trial in trials:
            if trial.state == TrialState.FAIL and trial.number not in retried:
                self.study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
                self._budget += 1


def _by_step(rows: Rows) -> list[tuple[int, list[Sequence[Any]]]]:
    steps: dict[int, list[Sequence[Any]]] = {}
    for row in rows:
        steps.setdefault(row[0], []).append(row)
    return sorted(steps.items())
