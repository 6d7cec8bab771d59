"""Tasks for the executor's tests: importable by Ray workers, each misbehaving in one way on demand."""

import os
import time
from pathlib import Path

import numpy as np


def rows(trial, value=None):
    value = float(np.random.default_rng(trial.stream("value")).normal()) if value is None else value
    return {"metrics": [(0, "env", "in", "value", value)]}


def setup_plain(*shared):
    return lambda trial: rows(trial)


def setup_shared(array):
    return lambda trial: rows(trial, float(array[trial.seed]))


def setup_scripted(folder):
    """Behave as the trial's `method` says; count attempts in files, which outlive the process."""

    def task(trial):
        marks = Path(folder) / trial.trial_id
        with open(marks, "a") as file:
            file.write("x")
        attempt = len(marks.read_text())
        kind, _, count = trial.method.partition(":")
        misbehave = attempt <= int(count or 10**9)
        if kind == "sleep":
            time.sleep(float(count))
        elif kind == "raise" and misbehave:
            raise ValueError("planned failure")
        elif kind == "nan" and misbehave:
            return rows(trial, float("nan"))
        elif kind == "die" and misbehave:
            os._exit(9)
        elif kind == "hang" and misbehave:
            time.sleep(60)
        return rows(trial)

    return task


def setup_broken():
    raise RuntimeError("no such library here")
