"""Trainings over slices that come and go, or compute wrongly: a logistic regression on real digits, gradients in float64."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cluster.slices.controller import ElasticController, StepReport
from cluster.slices.corruption import Detector
from cluster.slices.faults import BitFlip, Kill, SignFlip, Stuck
from cluster.slices.goodput import goodput, simulated_goodput
from cluster.slices.shards import Fault, Part, Shard, Vector
from jobs.claims import MetricRow, scalar_rows

_CLASSES, _PER_SHARD, _RATE = 10, 32, 0.5
_Digits = tuple[Vector, np.ndarray]
_SIMULATED_HOURS = 20_000.0


def digits() -> tuple[_Digits, _Digits]:
    """Scikit-learn's digits, pixels scaled to [0, 1] and a constant added: training and test part."""
    x, y = load_digits(return_X_y=True)
    x = np.hstack([x / 16.0, np.ones((len(x), 1))])
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.3, random_state=0, stratify=y)
    return (x_train, y_train), (x_test, y_test)


def make_part(x: Vector, y: np.ndarray, seed: int) -> Callable[[Vector, Shard], Part]:
    """Cross-entropy's gradient, [65 * 10], on 32 rows that follow from (seed, step, shard) alone."""

    def compute(parameters: Vector, shard: Shard) -> Part:
        generator = np.random.default_rng([seed, shard.step, shard.number])
        rows = generator.choice(len(x), _PER_SHARD, replace=False)
        logits = x[rows] @ parameters.reshape(-1, _CLASSES)
        logits -= logits.max(1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        error = np.exp(log_p)
        error[np.arange(_PER_SHARD), y[rows]] -= 1
        loss = -log_p[np.arange(_PER_SHARD), y[rows]].sum()
        return Part((x[rows].T @ error).ravel(), float(loss), _PER_SHARD)

    return compute


def _train(
    seed: int,
    steps: int,
    slices: int,
    shards: int,
    happen: Callable[[ElasticController, int], None] | None = None,
    **options: Any,
) -> tuple[Vector, list[StepReport], list[float]]:
    """Train; returns the parameters, what the steps reported, and the seconds that they took."""
    (x, y), _ = digits()
    parameters = np.zeros(x.shape[1] * _CLASSES)
    reports, seconds = [], []
    with ElasticController(make_part, (x, y, seed), slices=slices, shards=shards, **options) as controller:
        for step in range(steps):
            if happen is not None:
                happen(controller, step)
            began = time.perf_counter()
            reports.append(controller.step(parameters, step))
            seconds.append(time.perf_counter() - began)
            with np.errstate(over="ignore", invalid="ignore"):  # what undetected faults do to it is the point
                parameters = parameters - _RATE * reports[-1].gradient
    return parameters, reports, seconds


def _accuracy(parameters: Vector) -> float:
    _, (x, y) = digits()
    logits = x @ np.nan_to_num(parameters).reshape(-1, _CLASSES)
    return float((logits.argmax(1) == y).mean())


def elastic(seed: int, slices: int, shards: int, steps: int, lost: int, at: int, back: int) -> list[MetricRow]:
    """Lose slices in the middle of a training and win them back, under both policies.

    Where this process is connected to Ray, the slices that are dealt shards again are actors of it, and in a further training,
    of half as many slices, one is killed in the middle of a step.
    """

    def happen(controller: ElasticController, step: int) -> None:
        if step == at:
            for slice_id in range(lost):
                controller.lose(slice_id)
        if step == back:
            for _ in range(lost):
                controller.join()

    whole, reports, _ = _train(seed, steps, slices, shards, in_process=True)
    rows = [(n, "undisturbed", "in", "loss", report.loss) for n, report in enumerate(reports)]
    figures = {"loss_first": reports[0].loss, "loss_last": reports[-1].loss, "accuracy": _accuracy(whole)}
    rows += scalar_rows(figures, steps, "undisturbed")
    for policy in ("redeal", "drop"):
        # Starting an actor takes a second or two of a core: one of the policies on actors is enough.
        here = None if policy == "redeal" else True
        found, reports, seconds = _train(seed, steps, slices, shards, happen, policy=policy, in_process=here)
        rows += [(n, policy, "in", "loss", report.loss) for n, report in enumerate(reports)]
        figures = {
            "identical": float(found.tobytes() == whole.tobytes()),
            "difference": float(np.abs(found - whole).max()),
            "accuracy": _accuracy(found),
            "rounds_before": reports[at - 1].rounds,
            "rounds_degraded": reports[at].rounds,
            "rounds_after": reports[back].rounds,
            "examples_degraded": reports[at].examples,
            "milliseconds": 1e3 * float(np.median(seconds)),
        }
        rows += scalar_rows(figures, steps, policy)
    return rows + _killed(seed, max(2, slices // 2), shards, at, whole_of=steps)


def _killed(seed: int, slices: int, shards: int, at: int, whole_of: int) -> list[MetricRow]:
    """Kill an actor within a step: what is lost is the time of that step."""
    import ray

    if not ray.is_initialized():
        return []
    steps = min(whole_of, at + 20)
    whole, _, _ = _train(seed, steps, slices, shards, in_process=True)
    found, reports, seconds = _train(seed, steps, slices, shards, fault=Kill(slices - 1, at))
    figures = {
        "identical": float(found.tobytes() == whole.tobytes()),
        "lost": float(len(reports[at].lost)),
        "lost_seconds": max(0.0, seconds[at] - float(np.median(seconds[1:at]))),
    }
    return scalar_rows(figures, steps, "killed")


def _fault(name: str, seed: int) -> Fault | None:
    faults: dict[str, Fault | None] = {
        "none": None,
        "bit": BitFlip(3, probability=0.05, seed=seed),
        "stuck": Stuck(6),
        "sign": SignFlip(3, probability=0.2, seed=seed),
    }
    return faults[name]


def corruption(seed: int, fault: str, slices: int, shards: int, steps: int, audit_every: int) -> list[MetricRow]:
    """Break a slice, and train without looking, with looking at what is suspicious, and with audits as well."""
    whole, _, _ = _train(seed, steps, slices, shards, in_process=True)
    broken = _fault(fault, seed)
    rows = []
    detectors = {"blind": None, "detect": Detector(), "audit": Detector(audit_every=audit_every)}
    for name, detector in detectors.items():
        with np.errstate(over="ignore", invalid="ignore"):
            found, reports, _ = _train(seed, steps, slices, shards, fault=broken, detector=detector, in_process=True)
        struck = [n for n, report in enumerate(reports) if report.excluded]
        excluded = [slice_id for report in reports for slice_id in report.excluded]
        with np.errstate(over="ignore", invalid="ignore"):
            difference = float(np.nan_to_num(np.abs(found - whole).max(), nan=np.inf))
        figures = {
            "identical": float(found.tobytes() == whole.tobytes()),
            "log10_difference": float(np.log10(max(difference, 1e-300))) if np.isfinite(difference) else 308.0,
            "accuracy": _accuracy(found),
            "replayed_steps": float(sum(report.replays > 0 for report in reports)),
            "replays": float(sum(report.replays for report in reports)),
            "excluded": float(len(excluded)),
            "blamed_right": float(excluded == [getattr(broken, "slice_id", None)]),
            "found_at": float(struck[0]) if struck else -1.0,
            "first_strike": float(_first_strike(broken, steps)),
        }
        rows += scalar_rows(figures, steps, name)
    return rows


def _first_strike(fault: Fault | None, steps: int) -> int:
    """The first step whose gradient the fault changes; -1: none."""
    if fault is None:
        return -1
    gradient = np.ones(4)
    for step in range(steps):
        slice_id = getattr(fault, "slice_id", 0)
        if fault(slice_id, Shard(step, slice_id), 0, gradient).tobytes() != gradient.tobytes():
            return step
    return -1


def time_lost(per_hour: float, lost: float, recovery: float, throughput: float, seed: int) -> list[MetricRow]:
    """The share of the time that computes, by formula and by simulation."""
    exact = goodput(per_hour, lost, recovery, throughput)
    drawn = simulated_goodput(per_hour, lost, recovery, throughput, _SIMULATED_HOURS, seed)
    return scalar_rows({"goodput": exact, "simulated": drawn})
