"""What a study can optimise, computed from the rows that trials measure.

For domain generalization every score but `oracle` reads the environments that are trained on, and nothing else: the
held-out one is never seen. One checkpoint stands for a trial, the best by the first objective, as in DomainBed's
training-domain validation; an oracle comes first or alone, and takes the last checkpoint, as there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from cluster.errors import InputError
from cluster.trial import Trial

Rows = Sequence[Sequence[Any]]

SECONDS = "seconds"
ORACLE = "oracle"

_OUT = "out"


def _training(trial: Trial, rows: Rows, metric: str) -> list[float]:
    """Out-split values of the environments that are trained on."""
    held = trial.held_out
    return [
        value
        for _, environment, split, name, value in rows
        if name == metric and split == _OUT and environment not in held
    ]


def _held_out(trial: Trial, rows: Rows, metric: str) -> list[float]:
    held = trial.held_out
    return [
        value for _, environment, split, name, value in rows if name == metric and split == _OUT and environment in held
    ]


OBJECTIVES: dict[str, tuple[str, str, Callable[[Trial, Rows], float]]] = {
    "validation": (
        "maximize",
        "mean accuracy on the out splits of the training environments",
        lambda trial, rows: fmean(_training(trial, rows, "accuracy")),
    ),
    "worst": (
        "maximize",
        "accuracy on the out split of the worst training environment",
        lambda trial, rows: min(_training(trial, rows, "accuracy")),
    ),
    "validation-loss": (
        "minimize",
        "mean cross-entropy on the out splits of the training environments",
        lambda trial, rows: fmean(_training(trial, rows, "loss")),
    ),
    ORACLE: (
        "maximize",
        "accuracy on the out split of the held-out environment itself: an upper bound that nobody could select by",
        lambda trial, rows: fmean(_held_out(trial, rows, "accuracy")),
    ),
    SECONDS: ("minimize", "seconds that a trial takes (of a pack its share)", lambda trial, rows: 0.0),
}
"""Objectives of methods on environments, by name: direction, meaning, and score of one evaluation."""


class EvaluationObjective:
    """Scores trials by one checkpoint.

    Args:
        names: of OBJECTIVES.

    Raises:
        InputError: for unknown, repeated or unfit names.
    """

    def __init__(self, names: Sequence[str]) -> None:
        scores: dict[str, tuple[str, Callable[[Trial, Rows], float]]] = {}
        for name in names:
            if name not in OBJECTIVES:
                raise InputError(f"objective: unknown objective {name!r}; choose from {', '.join(OBJECTIVES)}")
            scores[name] = (OBJECTIVES[name][0], OBJECTIVES[name][2])
        self._set(names, scores)

    def _set(self, names: Sequence[str], scores: Mapping[str, tuple[str, Callable[[Trial, Rows], float]]]) -> None:
        if len(scores) < len(names) or not names:
            raise InputError(f"objective: {', '.join(names) or 'none'}: name one or more, each once")
        if names[0] == SECONDS:
            raise InputError("objective: seconds alone would choose the shortest training; put another one before it")
        self.names = list(names)
        self.directions = [scores[name][0] for name in names]
        self._scores = [scores[name][1] for name in names]

    def final(self, trial: Trial, rows: Rows, seconds: float) -> list[float]:
        """Score a complete trial at its best checkpoint by the first objective (an oracle: at its last one)."""
        steps = by_step(rows)
        if self.names[0] == ORACLE:
            chosen = steps[max(steps)]
        else:
            best = max if self.directions[0] == "maximize" else min
            chosen = best(steps.values(), key=lambda found: self._scores[0](trial, found))
        return [
            seconds if name == SECONDS else score(trial, chosen)
            for name, score in zip(self.names, self._scores, strict=True)
        ]

    def at_step(self, trial: Trial, rows: Rows) -> float:
        """Score one evaluation by the first objective."""
        return self._scores[0](trial, rows)


class LoggedObjective(EvaluationObjective):
    """Scores trials of a person's own module by what it logs, e.g. val_loss:min.

    Args:
        names: logged metrics with ":min" or ":max"; or "seconds".

    Raises:
        InputError: for a name without a direction.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._metrics = [name.rpartition(":")[0] for name in names if name != SECONDS]
        scores: dict[str, tuple[str, Callable[[Trial, Rows], float]]] = {}
        for name in names:
            if name == SECONDS:
                scores[name] = (OBJECTIVES[name][0], OBJECTIVES[name][2])
            elif found := re.fullmatch(r"(.+):(min|max)", name):
                scores[name] = (f"{found[2]}imize", _logged(found[1]))
            else:
                raise InputError(
                    f"objective: {name!r} has no direction; of a module of your own name a metric that it logs, e.g. "
                    "val_loss:min or val_accuracy:max"
                )
        self._set(names, scores)

    def final(self, trial: Trial, rows: Rows, seconds: float) -> list[float]:
        """Score a complete trial at its best evaluation by the first objective.

        Raises:
            InputError: the module does not log what is asked for.
        """
        logged = {name for _, _, _, name, _ in rows}
        for metric in self._metrics:
            if metric not in logged:
                raise InputError(f"objective: the module logs no {metric!r}; it logs {', '.join(sorted(logged))}")
        return super().final(trial, [row for row in rows if row[3] in self._metrics], seconds)


def _logged(metric: str) -> Callable[[Trial, Rows], float]:
    def score(trial: Trial, rows: Rows) -> float:
        values = [value for _, _, _, name, value in rows if name == metric]
        return fmean(values) if values else math.nan

    return score


def by_step(rows: Rows) -> dict[int, list[Sequence[Any]]]:
    """Group rows by step, in order."""
    steps: dict[int, list[Sequence[Any]]] = {}
    for row in sorted(rows, key=lambda row: row[0]):
        steps.setdefault(row[0], []).append(row)
    return steps
