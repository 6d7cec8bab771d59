"""Searches: trials per second and busy workers against Ray Tune and plain Optuna, the price of parallelism, and 1,000 workers."""

from __future__ import annotations

import contextlib
import heapq
import io
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python benchmarks/tuning.py` has only this folder

import numpy as np
import optuna
import scipy.stats

from benchmarks.executor import TUNE_ENVIRONMENT, append
from benchmarks.harness import Figure, alternate, quick_asked, ratio, scratch_folder, show
from cluster.executor import execute
from cluster.plan import Settings
from cluster.session import connect
from cluster.signals import StopRequest
from cluster.storage import Location
from cluster.store import Store
from cluster.trial import Scalar, Trial
from cluster.worker import Report, Tables, Task
from jobs.launch import SEARCH_BATCH
from jobs.search_plan import SearchPlan
from tuning.journal import OwnedJournal
from tuning.samplers import build_pruner, build_sampler
from tuning.search import Ended, Search
from tuning.search_space import Space, build_space
from tuning.storage import open_storage
from tuning.study import open_study, quiet_optuna
from tuning.tables import SUGGESTIONS

WORKERS = 2
SLEEP_SECONDS = 0.05
DIMENSIONS = 3
PLAIN = """
import optuna, sys, time, json
optuna.logging.set_verbosity(optuna.logging.ERROR)
path, count, seconds, seed = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True, sampler=optuna.samplers.TPESampler(seed=seed))

def objective(trial):
    values = [trial.suggest_float(f"x{i}", 0, 1) for i in range(3)]
    time.sleep(seconds)
    return sum((v - 0.3) ** 2 for v in values)

study.optimize(objective, n_trials=count)
"""


PROXIED = PLAIN.replace(
    "optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))",
    "optuna.storages.GrpcStorageProxy(host='127.0.0.1', port=int(path))",
)
PROXY = """
import optuna, sys
optuna.logging.set_verbosity(optuna.logging.ERROR)
storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(sys.argv[1]))
optuna.storages.run_grpc_proxy_server(storage, host="127.0.0.1", port=int(sys.argv[2]))
"""


class Value:
    """What a simulated trial measured."""

    names = ("value",)
    directions = ("minimize",)

    def final(self, trial: Trial, rows: Sequence[Sequence[Any]], seconds: float) -> list[float]:
        """Its last measurement."""
        return [float(rows[-1][4])]

    def at_step(self, trial: Trial, rows: Sequence[Sequence[Any]]) -> float:
        """The measurement."""
        return float(rows[-1][4])


def box(bounds: Sequence[tuple[float, float]]) -> Space:
    """Make a space of numbers x0, x1, ..."""
    names = [f"x{i}" for i in range(len(bounds))]
    laws = {name: {"low": low, "high": high} for name, (low, high) in zip(names, bounds, strict=True)}
    return build_space(laws, {}, dict.fromkeys(names, 0.0), dict.fromkeys(names, float), "bench")


def make_search(storage: optuna.storages.BaseStorage, space: Space, trials: int, seed: int, steps: int = 1) -> Search:
    """Open a study with TPE as `shiftlab tune` does."""
    study = open_study("bench", storage, Value.directions, space, {})
    study.sampler = build_sampler("tpe", {}, space, 1, seed)
    study.pruner = build_pruner("median" if steps > 1 else "none", {}, 1, 1, steps, 1)

    def make(values: Mapping[str, Scalar], replicate: int) -> Trial:
        return Trial.create("bench", "none", (), values, replicate, {"steps": steps})

    return Search(study, space, Value(), make, trials, steps=steps)


# Trials per second, and busy workers


def setup(seconds: float) -> Task:
    """Build a task that sleeps and measures a quadratic."""

    def task(trial: Trial) -> Tables:
        if seconds:
            time.sleep(seconds)
        value = sum((v - 0.3) ** 2 for v in json.loads(trial.hyperparameters).values())
        return {"metrics": [(1, "environment", "out", "value", value)]}

    return task


def ours(ray: ModuleType, count: int, seconds: float, seed: int) -> tuple[float, float]:
    """Run a study as `shiftlab tune` does, everything stored; returns trials per second and the share of busy workers.

    Both from the first trial's start to the last outcome told.
    """
    busy = first = 0.0
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        with Store(f"{folder}/run", {"suggestions": SUGGESTIONS}) as store:
            storage = open_storage(None, Location.resolve(f"{folder}/run"))
            search = make_search(storage.optuna, box([(0, 1)] * DIMENSIONS), count, seed)
            plan = SearchPlan([search], storage, None, lambda workers: 1)
            settings = Settings(WORKERS, max_batch=SEARCH_BATCH)
            for batch, _ in execute(
                plan.units(WORKERS), setup, (seconds,), settings=settings, stop=stop, ray=ray, decide=plan.decide
            ):
                if batch:
                    first = first or min(outcome.started_at for outcome in batch).timestamp()
                    append(store, batch)
                    store.append(plan.take(batch))
                    busy += sum(outcome.seconds for outcome in batch)
                    ended = time.time()
            assert search.completed == count
            plan.close()
    return count / (ended - first), busy / (WORKERS * (ended - first))


def tune_space(trial: optuna.Trial) -> None:
    for i in range(DIMENSIONS):
        trial.suggest_float(f"x{i}", 0, 1)


def ray_tune(count: int, seconds: float, *, reuse: bool, stripped: bool) -> float:
    """Trials per second of Ray Tune with OptunaSearch, from its first trial's start to its last trial's start.

    Args:
        count: trials.
        seconds: that each sleeps.
        reuse: whether actors are reused.
        stripped: whether it writes no CSV, JSON and TensorBoard files and no snapshots: no result of a trial is kept then.
    """
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    def objective(config: dict[str, float]) -> dict[str, float]:
        started = time.time()
        time.sleep(seconds)
        return {"value": sum((v - 0.3) ** 2 for v in config.values()), "started": started}

    for name, value in TUNE_ENVIRONMENT.items():
        if stripped:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        results = tune.Tuner(
            tune.with_resources(objective, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(
                    space=tune_space, metric="value", mode="min", sampler=optuna.samplers.TPESampler()
                ),
                num_samples=count,
                max_concurrent_trials=WORKERS,
                reuse_actors=reuse,
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=folder, **({"verbose": 0, "callbacks": []} if stripped else {"verbose": 0})
            ),
        ).fit()
        if len(results) != count or results.errors:
            raise RuntimeError(f"Ray Tune ended {len(results)} of {count} trials, {len(results.errors)} with errors")
        started = sorted(float((results[number].metrics or {})["started"]) for number in range(count))
    return (count - 1) / (started[-1] - started[0])


def plain_optuna(count: int, seconds: float, proxy: bool = False) -> float:
    """Trials per second of two processes with study.optimize on one journal file, from the first start to the last end.

    Args:
        count: trials.
        seconds: that each sleeps.
        proxy: whether the processes reach the journal through Optuna's gRPC proxy.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = f"{folder}/journal"
        arguments = [sys.executable, "-c", PLAIN, path, str(count // WORKERS), str(seconds)]
        if proxy:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = str(probe.getsockname()[1])
            server = subprocess.Popen([sys.executable, "-c", PROXY, path, port])
            stack.callback(server.wait)
            stack.callback(server.kill)
            time.sleep(3)
            arguments[2:4] = [PROXIED, port]
        processes = [subprocess.Popen([*arguments, str(seed)]) for seed in range(WORKERS)]
        if any(process.wait() for process in processes):
            raise RuntimeError("a process of plain Optuna failed")
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
        trials = optuna.load_study(study_name="s", storage=storage).trials
    # The processes do not start at the same moment: count where both were at work.
    began = max(trials[0].datetime_start, sorted(t.datetime_start for t in trials)[1])  # type: ignore[type-var]
    ended = [t.datetime_complete for t in trials if t.datetime_complete and t.datetime_complete > began]  # type: ignore[operator]
    return len(ended) / (max(ended) - began).total_seconds()  # type: ignore[operator]


class StudyActor:
    """A study in an actor of its own: what workers ask and tell, a call each."""

    def __init__(self, path: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = optuna.storages.JournalStorage(OwnedJournal(path))
        self._search = make_search(storage, box([(0, 1)] * DIMENSIONS), 1_000_000, 0)

    def ask(self) -> Trial | None:
        """Give a trial."""
        return self._search.next()

    def tell(self, trial: Trial, value: float) -> None:
        """Take its value."""
        self._search.take(trial, Ended("completed", [(1, "", "out", "value", value)], 0.0))


class Asking:
    """A worker that asks a study actor for its trials."""

    def ready(self) -> None:
        """Return when it is up."""

    def work(self, study: Any, count: int) -> None:
        """Run trials."""
        import ray

        for _ in range(count):
            trial = ray.get(study.ask.remote())
            values = json.loads(trial.hyperparameters).values()
            ray.get(study.tell.remote(trial, sum((v - 0.3) ** 2 for v in values)))


def study_actor(ray: ModuleType, count: int) -> float:
    """Trials per second of workers that ask an actor, which keeps the same journal; no tables are written."""
    with tempfile.TemporaryDirectory() as folder:
        study = ray.remote(num_cpus=0)(StudyActor).remote(f"{folder}/journal")
        workers = [ray.remote(num_cpus=0)(Asking).remote() for _ in range(WORKERS)]
        ray.get([worker.ready.remote() for worker in workers] + [study.ask.remote()])
        began = time.time()
        ray.get([worker.work.remote(study, count // WORKERS) for worker in workers])
        seconds = time.time() - began
        for actor in (*workers, study):
            ray.kill(actor)
    return count / seconds


def throughput(ray: ModuleType, quick: bool) -> tuple[list[Figure], list[str]]:
    """Measure trials per second and busy workers, ours and the peers in turn."""
    count, tuned, rounds = (200, 6, 1) if quick else (400, 12, 3)
    shares: list[float] = []

    def sleepy() -> float:
        rate, share = ours(ray, count // 2, SLEEP_SECONDS, len(shares))
        shares.append(share)
        return rate

    ours(ray, 20, 0, 0)
    ray_tune(4, 0, reuse=True, stripped=True)
    taken = alternate(
        {
            "ours": lambda: ours(ray, count, 0, 0)[0],
            "tune": lambda: ray_tune(tuned, 0, reuse=False, stripped=False),
            "reused": lambda: ray_tune(tuned, 0, reuse=True, stripped=False),
            "stripped": lambda: ray_tune(10 * tuned, 0, reuse=True, stripped=True),
            "plain": lambda: plain_optuna(count, 0),
            "proxy": lambda: plain_optuna(count, 0, proxy=True),
            "actor": lambda: study_actor(ray, count),
            "ours_50": sleepy,
            "tune_50": lambda: ray_tune(tuned, SLEEP_SECONDS, reuse=False, stripped=False),
            "plain_50": lambda: plain_optuna(count // 2, SLEEP_SECONDS),
        },
        rounds,
    )
    share = statistics.median(shares)
    figures = [
        ratio("tuning_vs_ray_tune_trivial", taken["ours"], taken["tune"], 100),
        ratio("tuning_vs_ray_tune_reusing_actors", taken["ours"], taken["reused"], None),
        ratio("tuning_vs_ray_tune_keeping_nothing", taken["ours"], taken["stripped"], None),
        ratio("tuning_vs_plain_optuna_trivial", taken["ours"], taken["plain"], None),
        ratio("tuning_driver_vs_grpc_proxy", taken["ours"], taken["proxy"], None),
        ratio("tuning_driver_vs_study_actor", taken["ours"], taken["actor"], None),
        ratio("tuning_vs_ray_tune_50_ms", taken["ours_50"], taken["tune_50"], None),
        ratio("tuning_vs_plain_optuna_50_ms", taken["ours_50"], taken["plain_50"], None),
        Figure("tuning_busy_workers_50_ms", share, "of time", 0.95, share, 1.0),
    ]
    notes = [
        f"trials per second, TPE on {DIMENSIONS} numbers, {WORKERS} workers; ours: {count} trivial, {count // 2} of 50 ms a "
        "round, from the first trial's start, study journal and all tables written",
        f"Ray Tune with OptunaSearch, function trainable, {tuned} trials a round: as it comes; with reuse_actors=True; and "
        f"({10 * tuned} trials) with that, no callbacks and {', '.join(TUNE_ENVIRONMENT)}, when it keeps no result of a trial",
        f"plain Optuna: {WORKERS} processes, study.optimize on one JournalFileBackend, its own fsync",
        "gRPC proxy: the same two processes through optuna.storages.run_grpc_proxy_server over a journal",
        "study actor: our search in a Ray actor with our journal, two workers that ask it; it writes no tables, ours does",
        "busy: seconds in trials over workers times wall time",
    ]
    return figures, notes


# The price of parallelism

_A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def branin(x: Sequence[float]) -> float:
    a, b = x
    inner = b - 5.1 / (4 * np.pi**2) * a * a + 5 / np.pi * a - 6
    return float(inner**2 + 10 * (1 - 1 / (8 * np.pi)) * np.cos(a) + 10 - 0.3978873577)


def hartmann6(x: Sequence[float]) -> float:
    return float(3.3223680115 - (np.array([1, 1.2, 3, 3.2]) * np.exp(-(_A * (np.array(x) - _P) ** 2).sum(1))).sum())


def ackley5(x: Sequence[float]) -> float:
    v = np.array(x)
    return float(20 - 20 * np.exp(-0.2 * np.sqrt((v * v).mean())) + np.e - np.exp(np.cos(2 * np.pi * v).mean()))


FUNCTIONS: dict[str, tuple[Callable[[Sequence[float]], float], list[tuple[float, float]]]] = {
    "branin": (branin, [(-5, 10), (0, 15)]),
    "hartmann6": (hartmann6, [(0, 1)] * 6),
    "ackley5": (ackley5, [(-15, 30)] * 5),
}
"""Standard test functions, less their minimum, with their domains."""


def simulate(workers: int, trials: int, seed: int, ask: Callable[[int], Any], tell: Callable[[Any], None]) -> None:
    """Let workers ask, train for a lognormal time and tell, in virtual time; `ask` is given the worker's number."""
    clock, generator = 0.0, np.random.default_rng(seed)
    running: list[tuple[float, int, int, Any]] = []
    idle, asked = list(range(workers)), 0
    while asked < trials or running:
        if asked < trials and idle:
            worker = idle.pop()
            heapq.heappush(running, (clock + generator.lognormal(0, 0.5), asked, worker, ask(worker)))
            asked += 1
        else:
            clock, _, worker, item = heapq.heappop(running)
            tell(item)
            idle.append(worker)


def best_of_ours(name: str, workers: int, trials: int, seed: int) -> float:
    """Best value of our search with so many simulated workers."""
    function, bounds = FUNCTIONS[name]
    search = make_search(optuna.storages.InMemoryStorage(), box(bounds), trials, seed)

    def tell(trial: Trial) -> None:
        values = json.loads(trial.hyperparameters)
        value = function([values[f"x{i}"] for i in range(len(bounds))])
        search.take(trial, Ended("completed", [(1, "", "out", "value", value)], 1.0))

    simulate(workers, trials, seed, lambda _: search.next(), tell)
    return float(search.study.best_value)


def best_of_plain(name: str, workers: int, trials: int, seed: int) -> float:
    """Best value of plain Optuna with so many simulated workers, each with a sampler of its own as processes have."""
    function, bounds = FUNCTIONS[name]
    samplers = [optuna.samplers.TPESampler(seed=1000 * seed + worker) for worker in range(workers)]
    study = optuna.create_study()

    def ask(worker: int) -> tuple[optuna.Trial, float]:
        study.sampler = samplers[worker]
        trial = study.ask()
        return trial, function([trial.suggest_float(f"x{i}", *bound) for i, bound in enumerate(bounds)])

    simulate(workers, trials, seed, ask, lambda item: study.tell(*item) and None)
    return float(study.best_value)


def parallelism(quick: bool) -> tuple[list[Figure], list[str]]:
    """Measure the best value after 200 trials: ours at 8 and 64 workers, sequential TPE, plain Optuna at as many."""
    trials, seeds = 200, range(3 if quick else 24)
    figures, notes = [], []
    for name in FUNCTIONS:
        alone = [best_of_plain(name, 1, trials, seed) for seed in seeds]
        for workers in (8, 64):
            mine = [best_of_ours(name, workers, trials, seed) for seed in seeds]
            theirs = [best_of_plain(name, workers, trials, seed) for seed in seeds]
            worse = scipy.stats.mannwhitneyu(mine, theirs, alternative="greater").pvalue
            medians = [statistics.median(values) for values in (mine, theirs, alone)]
            # No worse: not significantly so. Ratios of medians of two dozen searches scatter by a half and more.
            figures.append(Figure(f"tuning_best_{name}_{workers}_no_worse", float(worse), "p", 0.05, *medians[:2]))
            notes.append(
                f"{name}, {workers} workers: median distance to the minimum {medians[0]:.3g}, plain Optuna {medians[1]:.3g}, "
                f"one worker {medians[2]:.3g}"
            )
    notes.append(
        f"best value after {trials} trials, {len(seeds)} seeds; simulated workers, lognormal training times; value: one-sided "
        "p of ours being worse than plain Optuna with a sampler a worker (Mann-Whitney)"
    )
    return figures, notes


# A thousand workers


def thousand(workers: int, trials: int, minutes: float, sampler: str) -> list[float]:
    """Ask-to-answer latencies (seconds) of a study with so many workers, sorted.

    Virtual time, real service: the study answers one worker after the other, and every ask, report and tell takes what
    it takes here, journal included. A trial trains for about `minutes` and reports ten evaluations.
    """
    generator, latencies = np.random.default_rng(0), []
    clock = free = 0.0

    def serve(arrived: float, work: Callable[[], Any]) -> tuple[float, Any]:
        """Let the study do something for a worker; returns when it is answered, and what."""
        nonlocal free
        began = time.perf_counter()
        answer = work()
        free = max(free, arrived) + time.perf_counter() - began
        return free, answer

    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(None, Location.resolve(folder))
        space = box([(0, 1)] * 5)
        search = make_search(storage.optuna, space, trials, 0, steps=10)
        search.study.sampler = build_sampler(sampler, {}, space, 1, 0)
        # (time, order, kind, trial, step); workers come up over the first minute.
        events: list[tuple[float, int, str, Trial | None, int]] = [
            (generator.uniform(0, 60), number, "ask", None, 0) for number in range(workers)
        ]
        heapq.heapify(events)
        order = workers
        while events:
            clock, _, kind, trial, step = heapq.heappop(events)
            order += 1
            if kind == "ask":
                answered, trial = serve(clock, search.next)
                if trial is not None:
                    latencies.append(answered - clock)
                    heapq.heappush(events, (answered + _evaluation(generator, minutes), order, "report", trial, 1))
                continue
            assert trial is not None
            row = (step, "", "out", "value", float(generator.normal()) + json.loads(trial.hyperparameters)["x0"])
            _, stop = serve(clock, partial(search.decide, [Report(trial.trial_id, step, [row])]))
            if stop or step == 10:
                status = "pruned" if stop and step < 10 else "completed"
                serve(clock, partial(search.take, trial, Ended(status, [row], 1.0)))
                heapq.heappush(events, (clock, order, "ask", None, 0))
            else:
                heapq.heappush(events, (clock + _evaluation(generator, minutes), order, "report", trial, step + 1))
        storage.close(0)
    return sorted(latencies)


def _evaluation(generator: np.random.Generator, minutes: float) -> float:
    return float(6 * minutes * generator.lognormal(0, 0.3))


def scale(quick: bool) -> tuple[list[Figure], list[str]]:
    """Measure the latencies of 1,000 workers on one study."""
    figures, notes = [], []
    trials = 1500 if quick else 4000
    for sampler, minutes in (("random", 1.0), ("tpe", 1.0), ("tpe", 5.0)):
        latencies = 1000 * np.array(thousand(1000, trials, minutes, sampler))
        p50, p99 = np.percentile(latencies, [50, 99])
        name = f"tuning_1000_workers_{sampler}_{minutes:g}_min"
        figures += [Figure(f"{name}_p50", p50, "ms", None, p50), Figure(f"{name}_p99", p99, "ms", None, p99)]
    notes.append(
        f"1,000 simulated workers, {trials:,} trials with ten reports and the median pruner, 5 parameters: virtual training "
        "time (1 or 5 min a trial), real time of every ask, report and tell on one core, the journal included"
    )
    return figures, notes


def main() -> int:
    quick = quick_asked(__doc__)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="optuna.*")
    with quiet_optuna():
        with scratch_folder(), connect("local", cpus=WORKERS) as ray:
            figures, notes = throughput(ray, quick)
        for part in (parallelism, scale):
            more = part(quick)
            figures += more[0]
            notes += more[1]
    show("tuning", figures, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
