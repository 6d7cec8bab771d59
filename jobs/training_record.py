"""What the driver keeps of a training while it goes on: checkpoints, its log as Arrow rows, events, weights, progress."""

from __future__ import annotations

import datetime as dt
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from cluster.errors import InputError
from cluster.progress import PlanProgress
from cluster.store import Store
from cluster.training.rank import Message
from cluster.trial import Trial
from jobs.checkpoints import Checkpoints
from jobs.loggers import Loggers
from jobs.objectives import EvaluationObjective
from jobs.probes import probe_tables

_NOTICE_S = 10.0


class TrainingRecord:
    """Takes what a training says; the driver's side of it, whatever engine trains.

    Args:
        trial: what is trained.
        store: of the run.
        checkpoints: of the trial.
        objective: scores evaluations, for the best checkpoint; None: nobody does.
        loggers: hear what the tables hear.
        progress: shows the steps.
    """

    def __init__(
        self,
        trial: Trial,
        store: Store,
        checkpoints: Checkpoints,
        objective: EvaluationObjective | None,
        loggers: Loggers,
        progress: PlanProgress,
    ) -> None:
        self._trial, self._store, self._checkpoints = trial, store, checkpoints
        self._objective, self._loggers, self._progress = objective, loggers, progress
        self._step = checkpoints.entries[-1].step if checkpoints.entries else 0
        self._noticed = time.monotonic()
        self._note = ""

    def hear(self, message: Message, workers: int) -> None:
        """Take a message of rank 0."""
        kind, step, content = message
        if kind == "log":
            self._log(step, content, workers)
            self._note = f"loss {content['loss']:.4g}" if "loss" in content else self._note
        elif kind == "evaluation":
            self._log(step, {"/".join((r[3], r[1], r[2])): r[4] for r in content}, workers)
        elif kind == "checkpoint":
            self._checkpoints.save(step, content[0], self._score(content[1], step))
        elif kind == "probe":
            self._store.append(probe_tables(self._trial.trial_id, step, *content))
        elif kind == "verified":
            self._checkpoints.verify(step)
        elif kind == "model":
            self._store.location.write(content, "models", f"{self._trial.trial_id}.ckpt")
        self._show(step, workers)
        self._store.tick()

    def checkpoint(self) -> tuple[int, bytes] | None:
        """Return the last sound checkpoint."""
        count = len(self._checkpoints.entries)
        found = self._checkpoints.latest()
        for _ in range(count - len(self._checkpoints.entries)):
            self.event("checkpoint_damaged", None, "", "its content is not what was written; an earlier one is taken")
        return None if found is None else (found[0].step, found[1])

    def rewind(self) -> None:
        """Go back to the last verified checkpoint."""
        step = self._checkpoints.rewind()
        self.event("rewound", step, "", "to the last verified checkpoint")

    def event(self, kind: str, step: int | None, node: str, detail: str) -> None:
        """Store what happened, and say it."""
        now = dt.datetime.now(dt.UTC)
        self._store.append({"events": [(self._trial.trial_id, now, kind, step, node, detail)]})
        at = "" if step is None else f" at step {step}"
        print(f"{kind.replace('_', ' ')}{at}: {detail}", file=sys.stderr, flush=True)

    def waiting(self, ready: int, wanted: int) -> None:
        """Say now and then that the training waits for workers."""
        now = time.monotonic()
        if now - self._noticed > _NOTICE_S:
            self._noticed = now
            print(f"waiting for workers: {ready} of {wanted} are ready", file=sys.stderr, flush=True)
        self._store.tick()

    def _log(self, step: int, values: dict[str, float], workers: int) -> None:
        now = dt.datetime.now(dt.UTC)
        rows = [(self._trial.trial_id, now, step, workers, name, float(value)) for name, value in values.items()]
        self._store.append({"training": rows})
        self._loggers.log(values, step)

    def _score(self, rows: Sequence[Sequence[Any]], step: int) -> float | None:
        """Score the evaluation at a checkpoint's own step, the higher the better."""
        found = [row for row in rows if row[0] == step]
        if self._objective is None or not found:
            return None
        score = self._objective.at_step(self._trial, found)
        if math.isnan(score):
            logged = ", ".join(sorted({str(row[3]) for row in found}))
            raise InputError(f"monitor: {self._objective.names[0]} is not measured; the module logs {logged}")
        return score if self._objective.directions[0] == "maximize" else -score

    def _show(self, step: int, workers: int) -> None:
        if step > self._step:
            self._progress.update(step - self._step, 0, workers, self._note)
            self._step = step
