"""`shiftlab sweep`: compare methods across environments by DomainBed's protocol."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError
from cluster.executor import Outcome, Settings, execute
from cluster.packing import packs
from cluster.progress import PlanProgress, format_duration
from cluster.session import connect
from cluster.signals import Interrupted, StopRequest
from cluster.store import Run, Store
from cluster.trial import Scalar, Trial
from cluster.worker import Task
from jobs.command import command, command_line, versions
from lightning_modules.data.catalog import load_dataset
from tuning.space import draw

if TYPE_CHECKING:
    from lightning_modules.data.environments import Dataset

EXAMPLES = """
shiftlab sweep --dataset ColoredMNIST --methods ERM IRM VREx --held_out each --draws 4 --seeds 2 --steps 300 --run runs/colored
shiftlab sweep --dataset photos/ features.parquet --held_out each pairs --run runs/mine   # a folder and a feature table
shiftlab sweep --config sweep.yaml --run s3://bucket/sweep --address auto                 # on a running cluster
shiftlab sweep --dataset ColoredMNIST --workers 0 --steps 10 --run /tmp/try               # no Ray, for a debugger
"""


_LARGEST_PACK = 32


@dataclass
class Sweep:
    """Compare methods across environments: every method, held-out setting, draw and seed is one trial.

    What is stored in the run already is not run again: the same command resumes, a larger one adds to it.

    Args:
        dataset: built-in names (ColoredMNIST, RotatedMNIST), folders ROOT/environment/class/image, or feature
            tables (.parquet, .arrow, .npz).
        run: where results go: a directory, s3://... or gs://...
        methods: names of methods.
        held_out: settings to test on: each (every environment in turn), pairs (every two), or names; a comma joins
            environments held out together.
        draws: hyperparameter draws a method; draw 0 has the defaults.
        seeds: repetitions of everything, each with its own splits and draws.
        seed: first of these seeds.
        steps: parameter updates a trial.
        checkpoint_every: steps between evaluations; null takes DomainBed's for the dataset.
        hyperparameters: values fixed in all draws, by name; each must belong to at least one of the methods.
        image_size: side in pixels to which images of a folder are resized.
        workers: Ray workers; null takes one a CPU, 0 runs in this process without Ray.
        address: HOST:PORT or "auto" of a running Ray; null starts one for the sweep.
        gpus_per_worker: GPUs a worker reserves; a fraction shares one.
        retries: how often a failed trial is tried again.
        trial_timeout: seconds a trial may take; null for no limit.
        retry_failed: run trials again that are stored as failed.
        pack: trials of equal shape that train at once in one worker; null chooses, 1 trains each alone.
        timing: print where the time of the start went.
    """

    dataset: list[str]
    run: str
    methods: list[str] = field(default_factory=lambda: ["ERM"])
    held_out: list[str] = field(default_factory=lambda: ["each"])
    draws: int = 1
    seeds: int = 1
    seed: int = 0
    steps: int = 1000
    checkpoint_every: int | None = None
    hyperparameters: dict[str, int | float | str | bool] = field(default_factory=dict)
    image_size: int = 64
    workers: int | None = None
    address: str | None = None
    gpus_per_worker: float = 0
    retries: int = 1
    trial_timeout: float | None = None
    retry_failed: bool = False
    pack: int | None = None
    timing: bool = False

    def __post_init__(self) -> None:
        for name, least in (("draws", 1), ("seeds", 1), ("seed", 0), ("steps", 1), ("image_size", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)} is too small; give {least} or more")
        for name in ("checkpoint_every", "trial_timeout", "pack"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{name}: {value} is not above 0; give more, or null")
        if (self.workers or 0) < 0 or self.gpus_per_worker < 0:
            raise InputError("workers and gpus_per_worker: give 0 or more")
        for name in ("dataset", "methods", "held_out"):
            values = getattr(self, name)
            if not values:
                raise InputError(f"{name}: is empty; name at least one")
            if len(set(values)) < len(values):
                raise InputError(f"{name}: {', '.join(values)} repeats one; name each once")


Plan = Callable[[], Iterator[Trial]]


def run(options: Sweep) -> int:
    """Run the sweep; 0 if every trial of the plan is completed, 1 if some failed, 130 or 143 if it was stopped."""
    clock = _Clock()
    with StopRequest() as stop:
        try:
            with stop.interruptible():
                datasets = _load(options)
                clock.lap("data")
            with Store(options.run) as store:
                if store.recovered:
                    print(
                        f"recovered {store.recovered} rows that a launch before this one had not sealed",
                        file=sys.stderr,
                    )
                done = Run(options.run).trial_status()
                counts = _execute(options, datasets, store, done, stop, clock)
        except Interrupted:
            counts = None
        if counts is None or stop.requested:
            stored = "" if counts is None else f"{counts.done} of {counts.total} trials are stored; "
            print(f"stopped: {stored}resume with\n  {command_line('shiftlab sweep', options)}", file=sys.stderr)
            return stop.exit_code
    return _summarise(options, counts, clock)


def setup(threads: int, datasets: Mapping[str, Dataset]) -> Task:
    """Prepare a worker: import torch and Lightning once, and remember the splits of the seeds in use."""
    from functools import lru_cache

    import torch

    from lightning_modules.data.tensors import SplitDataset, split_dataset
    from lightning_modules.domain_generalization.pack import Member, train_pack

    torch.set_num_threads(threads)

    @lru_cache(maxsize=8)
    def split(identity: str, seed: int) -> SplitDataset:
        return split_dataset(datasets[identity], seed)

    class Train:
        def __call__(self, trial: Trial) -> dict[str, list[Any]]:
            # A pack of one: on a CPU a trial then has the same numbers to the last bit whatever trains beside it.
            (result,) = self.pack([trial])
            if isinstance(result, Exception):
                raise result
            return result

        def pack(self, trials: Sequence[Trial]) -> list[dict[str, list[Any]] | Exception]:
            members = [
                Member(json.loads(t.hyperparameters), split(t.dataset, t.seed), t.held_out, t.stream) for t in trials
            ]
            results = train_pack(trials[0].method, members, json.loads(trials[0].budget))
            return [result if isinstance(result, Exception) else {"metrics": result} for result in results]

    return Train()


def shape(trial: Trial) -> tuple[Any, ...]:
    """What trials must share to train as one pack."""
    values = json.loads(trial.hyperparameters)
    kinds = tuple((k, v) for k, v in values.items() if k == "batch_size" or isinstance(v, str | bool))
    return trial.method, trial.dataset, len(trial.held_out), trial.budget, kinds


@dataclass
class _Counts:
    total: int
    completed: int
    failed: int
    first_error: str = ""
    ran: int = 0

    @property
    def done(self) -> int:
        return self.completed + self.failed


class _Clock:
    """Where the time goes between the start of the process and the first result."""

    def __init__(self) -> None:
        import psutil

        self.began = self._last = psutil.Process().create_time()
        self.laps: dict[str, float] = {}
        self.lap("python and options")

    def lap(self, name: str) -> None:
        now = time.time()
        self.laps.setdefault(name, now - self._last)
        self._last = now

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.laps.items())
        return f"{sum(self.laps.values()):.1f} s to the first finished trial: {parts}"


def _load(options: Sweep) -> dict[str, Dataset]:
    """Check everything that can be checked before anything starts; returns the datasets by identity."""
    from lightning_modules.domain_generalization.catalog import check_method_name

    datasets = {d.identity: d for d in (load_dataset(spec, options.image_size) for spec in options.dataset)}
    _settings(options, datasets)
    for name in options.methods:
        check_method_name(name)
    return datasets


def held_out_settings(words: Sequence[str], names: Sequence[str], dataset: str) -> list[tuple[str, ...]]:
    """Turn the words of --held_out into settings, each the environments held out together.

    Raises:
        InputError: for a name the dataset does not have, or a setting that leaves nothing to train on.
    """
    settings: list[tuple[str, ...]] = []
    for word in words:
        if word == "each":
            settings += [(name,) for name in names]
        elif word == "pairs":
            settings += list(itertools.combinations(names, 2))
        else:
            settings.append((word,) if word in names else tuple(word.split(",")))
    for setting in settings:
        for name in setting:
            if name not in names:
                raise InputError(
                    f"held_out: dataset {dataset} has no environment {name!r}; it has {', '.join(names)} "
                    "(or say each, pairs)"
                )
        if len(set(setting)) >= len(names):
            raise InputError(f"held_out: {','.join(setting)} leaves nothing of {dataset} to train on; hold out fewer")
    return list(dict.fromkeys(tuple(sorted(set(setting))) for setting in settings))


def _execute(
    options: Sweep,
    datasets: Mapping[str, Dataset],
    store: Store,
    done: dict[str, str],
    stop: StopRequest,
    clock: _Clock,
) -> _Counts:
    workers = options.workers
    if workers is None and not options.address and not os.environ.get("RAY_ADDRESS"):
        workers = os.cpu_count() or 1
    skip = {key for key, status in done.items() if not (options.retry_failed and status == "failed")}
    counts, settings = (
        _Counts(_total(options, datasets), 0, 0),
        Settings(0, 1, options.gpus_per_worker, options.retries),
    )
    settings = dataclasses.replace(settings, trial_timeout=options.trial_timeout)
    with contextlib.ExitStack() as stack:
        # Importing the methods takes as long as starting Ray, which mostly waits for other processes: do both at once.
        planner = stack.enter_context(ThreadPoolExecutor(1)).submit(_plan, options, datasets)
        if options.hyperparameters:
            planner.result()  # names a wrong one before anything starts
        if len(skip) >= counts.total:  # perhaps nothing is missing: find out before Ray starts for nothing
            _count_stored(counts, planner.result()(), skip, done)
            if counts.done == counts.total:
                return counts
        ray: Any = None
        if workers != 0:
            with stop.interruptible():
                ray = stack.enter_context(connect(options.address, cpus=workers))
                stop.arm()
            workers = _workers(workers, options, ray.cluster_resources())
            clock.lap("Ray")
        plan = planner.result()
        clock.lap("libraries and plan")
        if skip and not counts.done:
            _count_stored(counts, plan(), skip, done)
        missing = (trial for trial in plan() if trial.trial_id not in skip)
        # A worker without a trial would only import its libraries in the way of those that have one.
        settings = dataclasses.replace(settings, workers=min(workers or 0, counts.total - counts.done))
        return _run_missing(options, datasets, store, missing, counts, settings, stop, clock, ray)


def _count_stored(counts: _Counts, plan: Iterable[Trial], skip: set[str], done: Mapping[str, str]) -> None:
    for trial in plan:
        if trial.trial_id in skip:
            counts.completed += done[trial.trial_id] == "completed"
            counts.failed += done[trial.trial_id] != "completed"


def _workers(workers: int | None, options: Sweep, resources: Mapping[str, float]) -> int:
    """Choose the number of workers where none was given, and refuse what an embedded Ray can never start.

    Raises:
        InputError: when the cluster has no CPU yet, so that the number cannot be guessed, or this machine lacks GPUs.
    """
    embedded = not options.address and not os.environ.get("RAY_ADDRESS")
    if embedded and options.gpus_per_worker > resources.get("GPU", 0):
        found = resources.get("GPU", 0)
        raise InputError(f"gpus_per_worker: {options.gpus_per_worker:g} asked for, this machine has {found:g}; give 0")
    if workers is None and resources.get("CPU", 0) < 1:
        raise InputError("workers: the cluster has no CPU yet; give --workers N, so that it grows to N")
    return workers if workers is not None else int(resources["CPU"])


def _run_missing(
    options: Sweep,
    datasets: Mapping[str, Dataset],
    store: Store,
    missing: Iterable[Trial],
    counts: _Counts,
    settings: Settings,
    stop: StopRequest,
    clock: _Clock,
    ray: Any,
) -> _Counts:
    if counts.done == counts.total:
        return counts
    about = versions()
    # Large enough packs to be worth it, small enough that every worker has several to take its turn at.
    size = options.pack or min(_LARGEST_PACK, max(1, (counts.total - counts.done) // (4 * max(1, settings.workers))))
    with PlanProgress("trials", counts.total, counts.done, counts.failed) as progress, contextlib.suppress(Interrupted):
        outcomes = execute(packs(missing, shape, size), setup, (1, datasets), settings=settings, stop=stop, ray=ray)
        for batch, running in outcomes:
            if batch:
                _store(options, store, batch, about)
                clock.lap("workers and first trial")
            failed = [outcome for outcome in batch if outcome.status == "failed"]
            counts.ran += len(batch)
            counts.completed += len(batch) - len(failed)
            counts.failed += len(failed)
            if failed and not counts.first_error:
                counts.first_error = (failed[0].error or "").splitlines()[0]
            progress.update(len(batch) - len(failed), len(failed), running)
            store.tick()
    return counts


def _store(options: Sweep, store: Store, outcomes: Iterable[Outcome], about: str) -> None:
    trials, metrics = [], []
    for o in outcomes:
        t = o.trial
        trials.append(
            (t.trial_id, t.method, t.dataset, list(t.held_out), t.hyperparameters, t.seed, t.budget, o.status, o.error)
            + (o.attempts, o.node, o.device, o.started_at, o.seconds, about)
        )
        metrics += [(t.trial_id, *row) for row in o.tables.get("metrics", ())]
    try:
        store.append({"metrics": metrics, "trials": trials})
    except OSError as error:
        raise InputError(
            f"run: cannot write to {options.run!r} ({error.strerror or error}); what was stored is kept: "
            f"make room and resume with {command_line('shiftlab sweep', options)}"
        ) from error


def _settings(options: Sweep, datasets: Mapping[str, Dataset]) -> dict[str, list[tuple[str, ...]]]:
    """Held-out settings by dataset."""
    return {i: held_out_settings(options.held_out, d.environment_names, d.name) for i, d in datasets.items()}


def _total(options: Sweep, datasets: Mapping[str, Dataset]) -> int:
    """Count the trials of the plan."""
    settings = sum(map(len, _settings(options, datasets).values()))
    return options.draws * options.seeds * len(options.methods) * settings


def _plan(options: Sweep, datasets: Mapping[str, Dataset]) -> Plan:
    """Return a function that lists the trials; early ones cover every method.

    Raises:
        InputError: for hyperparameters that no method has or that leave nothing to draw, and for methods that need
            more training environments than a setting leaves.
    """
    from lightning_modules.domain_generalization.catalog import find_method
    from lightning_modules.hyperparameters import build, search_space
    from lightning_modules.networks import check_network

    methods = {name: find_method(name) for name in options.methods}
    fields = {name: {f.name for f in dataclasses.fields(m.Hyperparameters)} for name, m in methods.items()}
    for key in options.hyperparameters:
        if not any(key in names for names in fields.values()):
            known = ", ".join(sorted(set().union(*fields.values())))
            raise InputError(f"hyperparameters: none of {', '.join(methods)} has {key!r}; they have {known}")
    fixed = {n: {k: v for k, v in options.hyperparameters.items() if k in fields[n]} for n in methods}
    spaces = {}
    for name, method in methods.items():
        build(method.Hyperparameters, fixed[name], name)
        spaces[name] = {k: law for k, law in search_space(method.Hyperparameters).items() if k not in fixed[name]}
        if options.draws > 1 and not spaces[name]:
            raise InputError(f"draws: --hyperparameters leave nothing of {name} to draw; give --draws 1")
    settings = _settings(options, datasets)
    for identity, d in datasets.items():
        left = min(len(d.environments) - len(setting) for setting in settings[identity])
        for name, method in methods.items():
            check_network(str(fixed[name].get("network", d.network)), d.input_shape)
            if left < method.minimum_environments:
                raise InputError(
                    f"held_out: {name} trains on {method.minimum_environments} environments or more, a setting leaves "
                    f"{left} of {d.name}; hold out fewer"
                )

    def values(name: str, number: int, seed: int, network: str) -> dict[str, Scalar]:
        drawn = draw(spaces[name], name, number, seed) if number else {}
        values = dataclasses.asdict(build(methods[name].Hyperparameters, {**drawn, **fixed[name]}, name))
        if values["network"] == "auto":
            values["network"] = network
        return values

    def trials() -> Iterator[Trial]:
        seeds = range(options.seed, options.seed + options.seeds)
        for number, seed, (identity, dataset) in itertools.product(range(options.draws), seeds, datasets.items()):
            budget = {"steps": options.steps, "checkpoint_every": options.checkpoint_every or dataset.checkpoint_every}
            drawn = {name: values(name, number, seed, dataset.network) for name in methods}
            for setting, name in itertools.product(settings[identity], methods):
                yield Trial.create(name, identity, setting, drawn[name], seed, budget)

    return trials


def _summarise(options: Sweep, counts: _Counts, clock: _Clock) -> int:
    from jobs.report import write_report

    if options.timing and counts.ran:
        print(clock)
    if counts.completed:
        write_report(options.run)
    took = format_duration(time.time() - clock.began)
    print(
        f"{counts.total} trials: {counts.completed} completed, {counts.failed} failed, {counts.ran} run now in {took}"
    )
    if counts.failed:
        why = f" ({counts.first_error})" if counts.first_error else ""
        print(
            f"shiftlab sweep: {counts.failed} trials failed{why}; see `shiftlab report {options.run}`, "
            "and run the same command with --retry_failed true to try them again",
            file=sys.stderr,
        )
    return 1 if counts.failed else 0


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return command(Sweep, run, argv, prog="shiftlab sweep", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
