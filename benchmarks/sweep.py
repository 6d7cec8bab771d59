"""A sweep's trials as packs, against one process a trial and against solo Lightning fits on warm workers; the floor."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python benchmarks/sweep.py` has only this folder

WORKERS = 2
PACK = 32
BUDGET = {"steps": 300, "checkpoint_every": 100}
METHODS = ("ERM", "IRM", "VREx", "GroupDRO", "SD")
BATCH_SIZE = 64
FEATURES = 128
SETTINGS = {
    "linear heads on features": ("linear", "features"),
    "small MLPs on features": ("mlp", "GaussianEnvironments:environments=4"),
    "small MLPs on ColoredMNIST": ("mlp", "ColoredMNIST"),
}
"""Network and data of each comparison."""


def features_dataset() -> Any:
    """RotatedMNIST's digits as features: 128 rectified random projections, six environments, ten classes."""
    import dataclasses

    import numpy as np

    from lightning_modules.data.catalog import load_dataset

    digits = load_dataset("RotatedMNIST")
    projection = np.random.default_rng(0).normal(size=(784, FEATURES)).astype(np.float32) / 28
    rooms = tuple(
        dataclasses.replace(e, inputs=np.maximum(e.inputs.reshape(len(e), -1) @ projection, 0))
        for e in digits.environments
    )
    return dataclasses.replace(digits, identity="RotatedFeatures", environments=rooms, network="linear")


def dataset_of(spec: str) -> Any:
    """The data of a setting."""
    from lightning_modules.data.catalog import load_dataset

    return features_dataset() if spec == "features" else load_dataset(spec)


def trials(dataset: Any, network: str, count: int) -> list[Any]:
    """List `count` trials of a sweep: seeds x hyperparameter draws x held-out environments, method by method."""
    from cluster.trial import Trial
    from lightning_modules.domain_generalization.catalog import find_method
    from lightning_modules.hyperparameters import search_space
    from tuning.space import draw

    each = -(-count // len(METHODS))
    found = []
    for method in METHODS:
        space = {k: v for k, v in search_space(find_method(method).Hyperparameters).items() if k != "batch_size"}
        plan = itertools.product(range(each), range(3), dataset.environment_names)
        for number, seed, held_out in itertools.islice(plan, each):
            values = {
                **(draw(space, method, number, seed) if number else {}),
                "batch_size": BATCH_SIZE,
                "network": network,
            }
            found.append(Trial.create(method, dataset.identity, (held_out,), values, seed, BUDGET))
    return found[:count]


def one_process(spec: str, trial_json: str) -> None:
    """Run one trial as a script of its own would: plain PyTorch, no Lightning; prints its metric rows."""
    import torch

    from cluster.trial import Trial
    from lightning_modules.data.tensors import EnvironmentBatches, RowStream, split_dataset
    from lightning_modules.domain_generalization.catalog import find_method
    from lightning_modules.domain_generalization.method import Outputs, Shapes
    from lightning_modules.hyperparameters import build
    from lightning_modules.networks import build_network

    torch.set_num_threads(1)
    trial = Trial(*(tuple(v) if isinstance(v, list) else v for v in json.loads(trial_json)))
    dataset = dataset_of(spec)
    split = split_dataset(dataset, trial.seed)
    method = find_method(trial.method)
    h = build(method.Hyperparameters, json.loads(trial.hyperparameters), trial.method)
    generator = torch.Generator().manual_seed(trial.stream("init"))
    classes = len(dataset.classes)
    model = build_network(h.network, dataset.input_shape, classes, generator)
    training = [i for i, name in enumerate(dataset.environment_names) if name not in trial.held_out]
    shapes = Shapes(len(training), h.batch_size, model.classifier.in_features, classes)
    state = method.initial_state(h, shapes, dict(model.named_parameters()), generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=h.lr, weight_decay=h.weight_decay, fused=True)
    stream = EnvironmentBatches(split, lambda: RowStream(split, training, h.batch_size, trial.stream("batches")))
    rows: list[Any] = []
    for step, (inputs, labels) in enumerate(itertools.islice(stream, BUDGET["steps"])):
        if step == method.optimizer_reset_step(h):
            optimizer.state.clear()
        layers, logits = model(inputs.flatten(0, 1))
        outputs = Outputs(layers[-1].view(*labels.shape, -1), logits.view(*labels.shape, -1))
        loss, state = method.objective(outputs, labels, h, state, torch.tensor(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % BUDGET["checkpoint_every"] == 0:
            with torch.no_grad():
                correct = (model(split.inputs)[1].argmax(1) == split.labels).double()
            sums = torch.zeros(2 * len(split.rows_in), dtype=torch.float64).index_add_(0, split.group, correct)
            rows = (sums / torch.bincount(split.group)).tolist()
    print(json.dumps(rows))


def accuracies_by_process(spec: str, names: Sequence[str], chosen: Sequence[Any]) -> list[float]:
    """Run each trial in a process of its own, as many at once as there are workers; returns held-out accuracies."""

    def launch(trial: Any) -> float:
        text = json.dumps(
            [trial.method, trial.dataset, trial.held_out, trial.hyperparameters, trial.seed, trial.budget]
        )
        words = [sys.executable, str(Path(__file__).resolve()), "--one", spec, text]
        done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT)
        return float(json.loads(done.stdout)[2 * names.index(trial.held_out[0])])

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(launch, chosen))


def solo_setup(threads: int, datasets: Any) -> Any:
    """Prepare a worker whose trials are Lightning fits of their own."""
    import torch

    from lightning_modules.data.tensors import split_dataset
    from lightning_modules.domain_generalization.training import train

    torch.set_num_threads(threads)
    splits: dict[Any, Any] = {}

    def task(trial: Any) -> dict[str, Any]:
        key = trial.dataset, trial.seed
        split = splits.setdefault(key, splits.get(key) or split_dataset(datasets[trial.dataset], trial.seed))
        values, budget = json.loads(trial.hyperparameters), json.loads(trial.budget)
        return {"metrics": train(trial.method, values, split, trial.held_out, budget, trial.stream)}

    return task


def held_out_accuracies(attempts: Sequence[Any], chosen: Sequence[Any]) -> list[float]:
    """Accuracy of each trial on its held-out environment's "in" split at the last step."""
    found = []
    for attempt, trial in zip(attempts, chosen, strict=True):
        if attempt.error is not None:
            raise RuntimeError(attempt.error)
        rows = [r for r in attempt.tables["metrics"] if r[1:4] == (trial.held_out[0], "in", "accuracy")]
        found.append(max(rows)[4])
    return found


def packed(chosen: Sequence[Any]) -> list[list[Any]]:
    """Group trials as a sweep does."""
    from cluster.packing import packs
    from jobs.training import shape

    return [list(pack) for pack in packs(chosen, shape, PACK)]


def on_workers(ray: Any, workers: Sequence[Any], units: Sequence[Sequence[Any]]) -> list[Any]:
    """Run units on warm workers, each taking the next when it is free; returns attempts in the units' order."""
    waiting, results, busy = list(enumerate(units))[::-1], {}, {}
    for worker in workers:
        if waiting:
            number, unit = waiting.pop()
            busy[worker.run.remote([unit])] = (number, worker)
    while busy:
        (ready,), _ = ray.wait(list(busy), num_returns=1)
        number, worker = busy.pop(ready)
        results[number] = ray.get(ready)[0]
        if waiting:
            following, unit = waiting.pop()
            busy[worker.run.remote([unit])] = (following, worker)
    return [attempt for number in sorted(results) for attempt in results[number]]


def floor_seconds(network: str, dataset: Any, size: int) -> float:
    """Seconds a worker needs for nothing but the matrix products of a pack of `size` trials.

    Per step and layer: the product forward, the gradient in the weights and, but for the first layer, the gradient in
    the input; per checkpoint the forward products on all examples.
    """
    import torch

    torch.set_num_threads(1)
    inputs, classes = math.prod(dataset.input_shape), len(dataset.classes)
    widths = [inputs, classes] if network == "linear" else [inputs, 64, 64, classes]
    batch = (len(dataset.environments) - 1) * BATCH_SIZE
    examples = sum(map(len, dataset.environments))
    layers = [
        (torch.randn(size, batch, a), torch.randn(size, b, a), torch.randn(size, b, batch), torch.randn(256, a))
        for a, b in itertools.pairwise(widths)
    ]

    def step() -> None:
        for number, (x, w, dy, _) in enumerate(layers):
            torch.bmm(w, x.mT)
            torch.bmm(dy, x)
            if number:
                torch.bmm(w.mT, dy)

    def evaluation() -> None:
        for _, w, _, x in layers:
            w.flatten(0, 1) @ x.mT

    def seconds(call: Callable[[], None], repeats: int) -> float:
        call()
        taken = []
        for _ in range(repeats):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    checkpoints = BUDGET["steps"] // BUDGET["checkpoint_every"]
    return BUDGET["steps"] * seconds(step, 30) + checkpoints * examples / 256 * seconds(evaluation, 30)


def main() -> None:
    """Measure and print."""
    from benchmarks.harness import Figure, alternate, quick_asked, ratio, scratch_folder, show
    from cluster.session import connect
    from cluster.worker import Worker
    from jobs.training import setup

    quick = quick_asked(__doc__)
    rounds, counts = (1, (2, 8, 2 * PACK)) if quick else (5, (6, 30, 10 * PACK))
    figures: list[Figure] = []
    notes = [
        f"{BUDGET['steps']} steps, an evaluation of both splits of every environment each {BUDGET['checkpoint_every']}; "
        f"batch size {BATCH_SIZE} per environment; methods {', '.join(METHODS)}; {WORKERS} workers or processes at once",
        "a process a trial is plain PyTorch (no Lightning to import) with the same objective functions",
    ]
    with scratch_folder(), connect(None, cpus=WORKERS) as ray:
        for title, (network, spec) in SETTINGS.items():
            dataset = dataset_of(spec)
            names = dataset.environment_names
            shared = ray.put({dataset.identity: dataset})
            remote = ray.remote(Worker)
            solo = [remote.options(num_cpus=0).remote(solo_setup, 1, shared) for _ in range(WORKERS)]
            pack = [remote.options(num_cpus=0).remote(setup, 1, shared) for _ in range(WORKERS)]
            accuracy: dict[str, list[float]] = {}
            plans = dict(zip(("process", "solo", "pack"), (trials(dataset, network, n) for n in counts), strict=True))
            for workers in (solo, pack):  # warm: libraries imported, splits made
                on_workers(ray, workers, [[t] for t in plans["process"]] * 2)

            def measure(
                name: str, call: Callable[[], list[float]], accuracy: Any = accuracy, plans: Any = plans
            ) -> Any:
                def rate() -> float:
                    began = time.perf_counter()
                    accuracy[name] = call()
                    return len(plans[name]) / (time.perf_counter() - began)

                return rate

            def run_units(name: str, workers: Any, units: Any, plans: Any = plans) -> Callable[[], list[float]]:
                chosen = [trial for unit in units for trial in unit]
                return lambda: held_out_accuracies(on_workers(ray, workers, units), chosen)

            rates = alternate(
                {
                    "process": measure(
                        "process", lambda s=spec, n=names, p=plans: accuracies_by_process(s, n, p["process"])
                    ),
                    "solo": measure("solo", run_units("solo", solo, [[t] for t in plans["solo"]])),
                    "pack": measure("pack", run_units("pack", pack, packed(plans["pack"]))),
                },
                rounds,
            )
            figures.append(
                ratio(f"{title}: packs against a process a trial, trials/s", rates["pack"], rates["process"], 30)
            )
            figures.append(ratio(f"{title}: packs against solo fits on warm workers", rates["pack"], rates["solo"], 3))
            floor = WORKERS * PACK / floor_seconds(network, dataset, PACK)
            figures.append(ratio(f"{title}: share of the floor (bare products)", rates["pack"], [floor] * rounds, None))
            by_trial = {t.trial_id: a for t, a in zip(plans["solo"], accuracy["solo"], strict=True)}
            by_pack = {
                t.trial_id: a
                for t, a in zip([t for u in packed(plans["pack"]) for t in u], accuracy["pack"], strict=True)
            }
            both = [key for key in by_trial if key in by_pack]
            gaps = [by_trial[k] - by_pack[k] for k in both]
            spread = statistics.pstdev([by_trial[k] for k in both]) or 1.0
            process_gap = max(
                abs(a - by_pack[t.trial_id])
                for t, a in zip(plans["process"], accuracy["process"], strict=True)
                if t.trial_id in by_pack
            )
            notes.append(
                f"{title}: held-out accuracy of {len(both)} trials, solo minus pack: mean {statistics.fmean(gaps):+.4f}, "
                f"largest {max(map(abs, gaps)):.4f} (their spread over trials {spread:.4f}); "
                f"process against pack: largest {process_gap:.4f}"
            )
            for actor in (*solo, *pack):
                ray.kill(actor)
    show("Sweep: trials per second", figures, notes)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one_process(sys.argv[2], sys.argv[3])
    else:
        main()
