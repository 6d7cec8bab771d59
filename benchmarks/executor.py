"""The executor's throughput against Ray Tune and against a process a trial, its memory, and a sweep's cold start."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python benchmarks/executor.py` has only this folder

from benchmarks.harness import Figure, alternate, quick_asked, ratio, scratch_folder, show
from cluster.executor import execute
from cluster.plan import Outcome, Settings
from cluster.session import connect
from cluster.signals import StopRequest
from cluster.store import Store
from cluster.trial import Trial
from cluster.worker import Tables, Task

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 2
SLEEP_SECONDS = 0.05
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",  # no snapshots of the experiment but the last
    "RAY_AIR_NEW_OUTPUT": "0",
}
PROCESS = "import torch, lightning; print({'trial': 0, 'accuracy': 0.5})"
COLD_START = ["--dataset=ColoredMNIST", "--methods=ERM", "--held_out=+90%", "--steps=50", "--timing=true"]


def setup(folder: str, seconds: float) -> Task:
    """Wait until every worker is here, so that a warm pool is what is measured; build a task that sleeps."""
    Path(folder, str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(os.listdir(folder)) < WORKERS:
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited a minute for {WORKERS} workers")
        time.sleep(0.005)

    def task(trial: Trial) -> Tables:
        if seconds:
            time.sleep(seconds)
        return {"metrics": [(0, "environment", "out", "accuracy", 0.5)]}

    return task


def plan(count: int) -> Iterator[Trial]:
    """List trials that differ in a hyperparameter, lazily, as a sweep does."""
    for number in range(count):
        yield Trial.create("trivial", "none", ("environment",), {"x": number / count}, 0, {"steps": 1})


def append(store: Store, outcomes: list[Outcome]) -> None:
    """Store outcomes with the columns that a sweep stores."""
    trials, metrics = [], []
    for o in outcomes:
        if o.error is not None:
            raise RuntimeError(f"a trial failed after {o.attempts} attempts on {o.node}: {o.error}")
        t = o.trial
        trials.append(
            (t.trial_id, t.method, t.dataset, list(t.held_out), t.hyperparameters, t.seed, t.budget, o.status, o.error)
            + (o.attempts, o.node, o.device, o.started_at, o.seconds, "{}")
        )
        metrics += [(t.trial_id, *row) for row in o.tables["metrics"]]
    store.append({"metrics": metrics, "trials": trials})


class Rate(NamedTuple):
    """Trials per second: from the first trial's start on a warm pool, and from before the pool was started."""

    warm: float
    whole: float


def run_plan(ray: ModuleType, count: int, seconds: float = 0, watch: Callable[[int], None] | None = None) -> Rate:
    """Execute and store a plan of trials on a new pool, up to the last outcome stored."""
    done, first = 0, 0.0
    began = time.time()
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as meeting,
        StopRequest() as stop,
        Store(f"{folder}/run") as store,
    ):
        settings = Settings(WORKERS)
        for outcomes, _ in execute(plan(count), setup, (meeting, seconds), settings=settings, stop=stop, ray=ray):
            if outcomes:
                first = first or min(outcome.started_at for outcome in outcomes).timestamp()
                append(store, outcomes)
                done += len(outcomes)
                ended = time.time()
                if watch is not None:
                    watch(done)
            store.tick()
    if done != count:
        raise RuntimeError(f"stopped after {done} of {count} trials")
    return Rate(count / (ended - first), count / (ended - began))


def tune_rate(count: int, *, as_class: bool = False) -> float:
    """Trials per second of Ray Tune, from its first trial's start to its last trial's start: its best stretch."""
    from ray import tune

    class Trivial(tune.Trainable):
        def setup(self, config: dict[str, float]) -> None:
            self.x = config["x"]

        def reset_config(self, config: dict[str, float]) -> bool:
            self.x = config["x"]
            return True

        def step(self) -> dict[str, Any]:
            return {"score": self.x, "started": time.time(), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Save nothing: Tune insists on it."""

        def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
            """Load nothing."""

    def trivial(config: dict[str, float]) -> dict[str, float]:
        return {"score": config["x"], "started": time.time()}

    with tempfile.TemporaryDirectory() as folder:
        results = tune.Tuner(
            tune.with_resources(Trivial if as_class else trivial, {"cpu": 1}),
            param_space={"x": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(
                metric="score", mode="max", num_samples=count, max_concurrent_trials=WORKERS, reuse_actors=True
            ),
            run_config=tune.RunConfig(name="tune", storage_path=folder, verbose=0, callbacks=[]),
        ).fit()
        if len(results) != count or results.errors:
            raise RuntimeError(f"Ray Tune ended {len(results)} of {count} trials, {len(results.errors)} with errors")
        started = sorted(float((results[number].metrics or {})["started"]) for number in range(count))
    return (count - 1) / (started[-1] - started[0])


def process_rate(count: int) -> float:
    """Trials per second of one Python process a trial, as many at a time as there are workers."""
    began = time.time()
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda _: _python("-c", PROCESS), range(count)))
    return count / (time.time() - began)


def measure_memory(count: int) -> None:
    """Print the driver's resident memory (MB) by the number of trials done, as JSON; meant for a fresh process."""
    import psutil
    import pyarrow as pa

    marks = [mark for mark in (1_000, 10_000, 100_000) if mark < count] + [count]
    memory: dict[int, list[float]] = {}

    def watch(done: int) -> None:
        if marks and done >= marks[0]:
            gc.collect()
            held = psutil.Process().memory_info().rss / 1e6
            pa.default_memory_pool().release_unused()  # the rest is not Arrow's cache of freed pages
            memory[marks.pop(0)] = [held, psutil.Process().memory_info().rss / 1e6]

    with connect(cpus=WORKERS) as ray:
        run_plan(ray, 600)
        run_plan(ray, count, watch=watch)
    print(json.dumps(memory))


def memory_figure(count: int) -> tuple[Figure, str]:
    """Measure how much the driver grows from 1,000 trials to `count`, in a process of its own."""
    output = _python("-c", f"from benchmarks.executor import measure_memory; measure_memory({count})")
    memory = {int(done): values for done, values in json.loads(output.splitlines()[-1]).items()}
    held = ", ".join(f"{values[0]:.1f} at {done:,}" for done, values in memory.items())
    rest = ", ".join(f"{values[1]:.1f} at {done:,}" for done, values in memory.items())
    growth = memory[count][0] - memory[1_000][0]
    note = f"driver memory, resident MB by trials done: {held}; with Arrow's cache of freed pages returned: {rest}"
    return Figure("executor_driver_memory_growth", growth, "MB", 20, growth, at_most=True), note


def cold_start(folder: str, extra: tuple[str, ...]) -> tuple[float, str]:
    """Run a sweep of one trial; returns the seconds from process start to its first result, and where they went."""
    with tempfile.TemporaryDirectory(dir=folder) as run:
        output = _python("-m", "jobs.cli", "sweep", *COLD_START, "--run", run, *extra)
    found = re.search(r"^([\d.]+) s to the first finished trial: (.*)$", output, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"the sweep printed no timing line but:\n{output}")
    return float(found[1]), found[2]


def cold_start_figures(folder: str, rounds: int) -> tuple[list[Figure], list[str]]:
    """Measure a sweep's cold start with Ray and without, in turn."""
    kinds = (("sweep_cold_start_ray", 15, ()), ("sweep_cold_start_without_ray", 7, ("--workers", "0")))
    starts: dict[str, list[tuple[float, str]]] = {name: [] for name, _, _ in kinds}
    for _ in range(rounds):
        for name, _, extra in kinds:
            starts[name].append(cold_start(folder, extra))
    figures, notes = [], []
    for name, bar, _ in kinds:
        seconds, laps = sorted(starts[name])[rounds // 2]
        figures.append(Figure(name, seconds, "s", bar, seconds, at_most=True))
        notes.append(f"{name}, median of {rounds}: {laps}")
    return figures, notes


def _python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def throughput_figures(ray: ModuleType, quick: bool) -> tuple[list[Figure], list[str]]:
    """Measure trials per second: trivial ones against Tune and against processes, short ones against the ideal."""
    count, tuned, rounds = (10_000, 24, 1) if quick else (20_000, 100, 3)
    rates: list[Rate] = []

    def ours() -> float:
        rates.append(run_plan(ray, count))
        return rates[-1].warm

    peers = {
        "executor_vs_ray_tune": lambda: tune_rate(tuned),
        "executor_vs_process_per_trial": lambda: process_rate(2),
    }
    run_plan(ray, 500)
    if not quick:
        tune_rate(4)
        peers["executor_vs_ray_tune_class"] = lambda: tune_rate(tuned, as_class=True)
    taken = alternate({"ours": ours, **peers}, rounds)
    bars = {"executor_vs_ray_tune": 200}
    figures = [ratio(name, taken["ours"], taken[name], bars.get(name)) for name in peers]
    short = 100 if quick else 200
    sleeps = [run_plan(ray, short, SLEEP_SECONDS) for _ in range(min(rounds, 2))]
    warm, ideal = statistics.median(rate.warm for rate in sleeps), WORKERS / SLEEP_SECONDS
    figures.append(Figure("executor_share_of_ideal_50_ms", warm / ideal, "of ideal", 0.95, warm, ideal))
    notes = [
        "trials per second on a warm pool, from the first trial's start: Ray's start and the pool's are left out, for Tune "
        "its actors' too",
        f"ours with the pool's start: {statistics.median(rate.whole for rate in rates):,.0f}/s trivial ({count:,} trials), "
        f"{statistics.median(rate.whole for rate in sleeps):.1f}/s of 50 ms ({short} trials)",
        f"Ray Tune: function trainable, random search, {WORKERS} concurrent, reuse_actors=True, {tuned} trials a round, "
        f"no callbacks, verbose=0, {', '.join(f'{k}={v}' for k, v in TUNE_ENVIRONMENT.items())}: it then writes no "
        "result of a trial, ours stores all",
        "executor_vs_ray_tune_class: the same with a class trainable (not in --quick)",
        f"process per trial: python that imports torch and lightning, {WORKERS} at a time; it has no warm state",
    ]
    return figures, notes


def main() -> int:
    quick = quick_asked(__doc__)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.update(TUNE_ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with scratch_folder() as folder:
        cold, cold_notes = cold_start_figures(folder, 1 if quick else 3)
        memory, memory_note = memory_figure(20_000 if quick else 100_000)
        with connect("local", cpus=WORKERS) as ray:
            figures, notes = throughput_figures(ray, quick)
    show("executor", [*figures, memory, *cold], [*notes, memory_note, *cold_notes])
    return 0


if __name__ == "__main__":
    sys.exit(main())
