"""How far one driver carries: 100,000 no-op trials over 64 simulated nodes, its memory, the store, and the first wall."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python benchmarks/scale.py` has only this folder

from benchmarks.harness import Figure, quick_asked, scratch_folder, show
from cluster.executor import execute
from cluster.plan import Settings
from cluster.session import connect
from cluster.signals import StopRequest
from cluster.store import Store
from cluster.trial import Trial
from cluster.worker import Setup, Tables, Task, Worker
from jobs.outcomes import outcome_rows

NODES = 64
ROWS_A_TRIAL = 4


def setup() -> Task:
    """Build a task that does nothing but return four rows."""

    def task(trial: Trial) -> Tables:
        return {"metrics": [(step, "environment", "out", "accuracy", 0.5) for step in range(ROWS_A_TRIAL)]}

    return task


def plan(count: int) -> Iterator[Trial]:
    """Distinct trials, made while they are asked for."""
    return (Trial.create("noop", "nothing", (), {"x": 0.5}, number, {"steps": 1}) for number in range(count))


def drive(count: int, workers: int, ray: ModuleType, folder: Path, max_batch: int = 256) -> dict[str, float]:
    """Run trials through the executor into a store; what it took of the driver."""
    process, samples, began = psutil.Process(), [], 0.0
    done, stored_seconds = 0, 0.0
    with Store(str(folder)) as store:
        settings = Settings(workers=workers, cpus_per_worker=1, max_batch=max_batch)
        for outcomes, _ in execute(plan(count), cast(Setup, setup), settings=settings, stop=StopRequest(), ray=ray):
            if not outcomes:
                continue
            if not began:  # the workers are here
                began, cpu = time.perf_counter(), process.cpu_times()
            moment = time.perf_counter()
            store.append(outcome_rows(outcomes, "{}"))
            stored_seconds += time.perf_counter() - moment
            done += len(outcomes)
            if done // (count // 10) > len(samples):
                samples.append(process.memory_info().rss / 2**20)
        seconds = time.perf_counter() - began
        used = process.cpu_times()
    cpu_seconds = used.user + used.system - cpu.user - cpu.system
    return {
        "rate": count / seconds,
        "cpu_ms": 1000 * cpu_seconds / count,
        "store_rows": count * (1 + ROWS_A_TRIAL) / stored_seconds,
        "store_ms": 1000 * stored_seconds / count,
        "memory_first": samples[0],
        "memory_last": samples[-1],
    }


class StandIn:
    """Ray's interface as far as the executor uses it, answered at once in this process: only the driver is left."""

    exceptions = SimpleNamespace(RayError=RuntimeError, RayTaskError=RuntimeError)
    _private = SimpleNamespace(state=SimpleNamespace(state=SimpleNamespace(get_draining_nodes=dict)))

    def put(self, value: Any) -> Any:
        """Keep a value."""
        return value

    def get(self, ref: _Ref) -> Any:
        """Give it."""
        return ref.value

    def wait(self, refs: list[_Ref], num_returns: int, timeout: float) -> tuple[list[_Ref], list[_Ref]]:
        """Say that everything is ready."""
        return refs[:num_returns], refs[num_returns:]

    def kill(self, actor: Any) -> None:
        """End an actor."""

    def nodes(self) -> list[dict[str, Any]]:
        """No node was lost."""
        return []

    def remote(self, **_: Any) -> Any:
        """Make actors of a class."""
        return lambda cls: SimpleNamespace(remote=lambda setup, *shared, reporting: _Actor(cls(setup, *shared)))


class _Ref:
    def __init__(self, value: Any) -> None:
        self.value = value


class _Actor:
    def __init__(self, worker: Worker) -> None:
        self.describe = SimpleNamespace(remote=lambda: _Ref(("host", "node", "cpu")))
        self.run = SimpleNamespace(remote=lambda units: _Ref(worker.run(units)))


def main() -> None:
    """Measure and print."""
    quick = quick_asked(__doc__)
    count = 20_000 if quick else 100_000
    os.environ["OMP_NUM_THREADS"] = "1"
    figures, notes = [], []
    with scratch_folder(), tempfile.TemporaryDirectory() as name:
        with connect("local", cpus=NODES) as ray:
            real = drive(count, NODES, ray, Path(name, "real"))
            single = drive(count // 10, NODES, ray, Path(name, "single"), max_batch=1)
        figures += [
            Figure(f"{count:,} trials over {NODES} workers, trials/s", real["rate"], "/s", None, real["rate"]),
            Figure("CPU of the driver a trial", real["cpu_ms"], "ms", None, real["cpu_ms"]),
            Figure("time in the store a trial", real["store_ms"], "ms", None, real["store_ms"]),
            Figure("rows/s that the store takes", real["store_rows"], "/s", None, real["store_rows"]),
            Figure(
                "memory of the driver, last tenth to first",
                real["memory_last"] / real["memory_first"],
                "x",
                None,
                real["memory_last"],
                real["memory_first"],
            ),
        ]
        figures += [
            Figure("the same, a call for every trial, calls/s", single["rate"], "/s", None, single["rate"]),
            Figure("CPU of the driver a call", single["cpu_ms"], "ms", None, single["cpu_ms"]),
        ]
        wall = 1000 / single["cpu_ms"]
        notes.append(
            f"the first wall is Ray's calls, which trials longer than 0.1 s get each to itself: a driver with a core of its own makes "
            f"about {wall:,.0f} a second, so {wall:,.0f} workers stay busy with trials of 1 s, {60 * wall:,.0f} with trials of a minute"
        )
        for workers in (64, 1000, 4000):
            alone = drive(count, workers, cast(ModuleType, StandIn()), Path(name, f"alone{workers}"))
            title = f"the driver alone, {workers:,} workers that answer at once, trials/s"
            figures.append(Figure(title, alone["rate"], "/s", None, alone["rate"]))
    notes.insert(
        0,
        f"{NODES} workers are processes of one raylet whose CPUs are fake: two real cores do all of their work, and Ray's",
    )
    show("Scale of one driver", figures, notes)


if __name__ == "__main__":
    main()
