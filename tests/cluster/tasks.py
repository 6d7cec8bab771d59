"""Tasks for the executor's tests: importable by Ray workers, each misbehaving in one way on demand."""

import json
import os
import time
from pathlib import Path

import numpy as np

from cluster.worker import Pruned


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
        misbehave = attempt <= float(count or 10**9)
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


class Reporting:
    """Reports ten evaluations, one every `pause` seconds of the trial's budget, and ends when it is told to.

    Args:
        wait: seconds to wait for the answer to each report; 0 goes on at once.
    """

    def __init__(self, wait=0.0):
        self._channel, self._wait = None, wait

    def listen(self, channel):
        self._channel = channel

    def __call__(self, trial):
        (result,) = self.pack([trial])
        if isinstance(result, Exception):
            raise result
        return result

    def pack(self, trials):
        pause = json.loads(trials[0].budget)["pause"]
        rows, results = {trial: [] for trial in trials}, {}
        for step in range(1, 11):
            for trial in [t for t in trials if t not in results]:
                rows[trial].append((step, f"pid {os.getpid()}", "out", "value", float(trial.seed)))
                if self._channel is not None:
                    self._channel.report(trial.trial_id, step, rows[trial][-1:])
                    if self._wait:
                        assert self._channel.wait(trial.trial_id, step, self._wait)
            deadline = time.monotonic() + pause
            while True:
                for trial in [t for t in trials if t not in results]:
                    if self._channel is not None and self._channel.stopped(trial.trial_id):
                        results[trial] = Pruned({"metrics": rows[trial]})
                if time.monotonic() >= deadline or len(results) == len(trials):
                    break
                time.sleep(0.001)
        return [results.get(trial, {"metrics": rows[trial]}) for trial in trials]


def setup_reporting(wait=0.0):
    return Reporting(wait)
