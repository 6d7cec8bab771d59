"""Whether a study has converged, by Optuna's terminator; computed beside the search, which never waits for it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import optuna
from optuna.terminator import (
    BaseErrorEvaluator,
    BaseImprovementEvaluator,
    BestValueStagnationEvaluator,
    EMMREvaluator,
    MedianErrorEvaluator,
    RegretBoundEvaluator,
    StaticErrorEvaluator,
)
from optuna.trial import TrialState

from cluster.errors import InputError

_KINDS: dict[str, type[BaseImprovementEvaluator]] = {
    "stagnation": BestValueStagnationEvaluator,
    "emmr": EMMREvaluator,
    "regret": RegretBoundEvaluator,
}


class Convergence:
    """Decides whether a study may end early: when the improvement still to be expected is below an error.

    Args:
        name: "stagnation" (no better value for a number of trials), "emmr" or "regret" (a Gaussian process's bound on
            what is left to gain, against the median of its first values).
        arguments: of Optuna's evaluator; "min_n_trials" is how many trials must be complete first (20), "error" the
            gain that is no longer worth it, instead of the median.
        objectives: how many the study has.
        maximise: whether more is better.
        seed: of the Gaussian process.

    Raises:
        InputError: for an unknown name or argument, or a study of several objectives.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any], objectives: int, maximise: bool, seed: int) -> None:
        if name not in _KINDS:
            raise InputError(f"terminator: unknown terminator {name!r}; choose from {', '.join(_KINDS)}")
        if objectives > 1:
            raise InputError("terminator: judges one objective; leave it out for several")
        kind, given = _KINDS[name], dict(arguments)
        accepted = [*inspect.signature(kind).parameters, "error"]
        self._least = int(given.pop("min_n_trials", 20)) if name == "stagnation" else int(given.get("min_n_trials", 20))
        error = given.pop("error", None)
        for argument in given:
            if argument not in accepted:
                raise InputError(f"terminator_args: {name} takes no {argument!r}; it takes {', '.join(accepted)}")
        if "seed" in accepted:
            given.setdefault("seed", seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self._improvement = kind(**given)
            except (TypeError, ValueError) as refused:
                raise InputError(f"terminator_args: {name} refuses them: {refused}") from refused
            self._error: BaseErrorEvaluator
            if error is not None or name == "stagnation":
                self._error = StaticErrorEvaluator(float(error or 0))
            else:
                self._error = MedianErrorEvaluator(self._improvement)
        self._direction = optuna.study.StudyDirection.MAXIMIZE if maximise else optuna.study.StudyDirection.MINIMIZE
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="convergence")
        self._answer: Future[bool] | None = None
        self._considered = 0
        self.reached = False

    def consider(self, study: optuna.Study, finished: int) -> None:
        """Take up the answer to the last question, and ask again where enough has changed since."""
        if self._answer is not None and self._answer.done():
            self.reached = self.reached or self._answer.result()
            self._answer = None
        if self._answer is None and not self.reached and finished > self._considered:
            self._considered = finished
            trials = study.get_trials(deepcopy=False)
            self._answer = self._thread.submit(self._judge, trials)

    def wait(self) -> None:
        """Wait for the answer that is being computed."""
        if self._answer is not None:
            self.reached = self.reached or self._answer.result()
            self._answer = None

    def _judge(self, trials: list[optuna.trial.FrozenTrial]) -> bool:
        if sum(trial.state == TrialState.COMPLETE for trial in trials) < self._least:
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            left = self._improvement.evaluate(trials, self._direction)
            return bool(left < self._error.evaluate(trials, self._direction))
