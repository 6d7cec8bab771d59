"""Error bounds: critics of 20 shifts as packs, against one critic at a time in the loops of the original recipe."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python benchmarks/bounds.py` has only this folder

from benchmarks.harness import Figure, quick_asked, ratio, show
from lightning_modules.error_bounds.critics import CriticEnsemble, Problem, Side, Training
from lightning_modules.error_bounds.discrepancy import DisagreementDiscrepancy, estimate_many
from lightning_modules.error_bounds.evidence import Evidence

ROWS, WIDTH, CLASSES, SHIFTS = 10_000, 512, 10, 20
TRAINING = Training()


def targets() -> list[Evidence]:
    """A source and 20 targets that drift from it: features of 10 classes around their means, and a linear head."""
    generator = np.random.default_rng(0)
    means = generator.standard_normal((CLASSES, WIDTH)) * 0.18
    drift = generator.standard_normal((SHIFTS, WIDTH)) * 0.18

    def draw(move: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
        labels = generator.integers(0, CLASSES, ROWS)
        x = means[labels] + move + noise * generator.standard_normal((ROWS, WIDTH))
        return x.astype(np.float32), labels

    x, labels = draw(np.zeros(WIDTH), 1.0)
    head = (means - means.mean(0)).astype(np.float32).T
    found = []
    for number in range(SHIFTS):
        xt, _ = draw(number / SHIFTS * drift[number], 1 + number / SHIFTS)
        found.append(Evidence(x, x @ head, labels, xt, xt @ head))
    return found


def loop(problem: Problem, training: Training, restart: int) -> tuple[float, float]:
    """Train one critic with loaders, autograd and AdamW; returns its largest validation discrepancy and the seconds.

    It has the first weights and the orders of rows of critic `restart` of the pack, so that the bounds can be compared.
    """
    pack = CriticEnsemble([problem], training)
    generator = torch.Generator().manual_seed(problem.seed)
    pack._start(problem, generator)
    sides = (problem.source, problem.target)
    orders = [
        [torch.randperm(len(s.train), generator=generator).tolist() for s in sides] for _ in range(training.epochs)
    ]
    critic = nn.Linear(problem.width, problem.classes)
    with torch.no_grad():
        critic.weight.copy_(pack.weight[0, restart :: training.restarts])
        critic.bias.copy_(pack.bias[0, restart :: training.restarts, 0])
    began = time.perf_counter()
    optimizer = torch.optim.AdamW(critic.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    data = [TensorDataset(s.train, s.train_target) for s in sides]
    validation = [DataLoader(TensorDataset(s.validation, s.validation_target), batch_size=256) for s in sides]
    best = -1.0
    for order in orders:
        loaders = [DataLoader(d, batch_size=training.batch_size, sampler=o) for d, o in zip(data, order, strict=True)]
        for (xs, ys), (xt, yt) in zip(*loaders, strict=False):
            source = F.cross_entropy(critic(xs), ys)
            z = critic(xt)
            margin = (z.gather(1, yt[:, None]) - z).sum(1) / (problem.classes - 1)
            loss = (source + torch.log1p(torch.exp(margin)).mean()) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        agreements = []
        with torch.no_grad():
            for loader in validation:
                agreements.append(sum(int((critic(x).argmax(1) == y).sum()) for x, y in loader) / len(loader.dataset))  # type: ignore[arg-type]
        best = max(best, agreements[0] - agreements[1])
    return best, time.perf_counter() - began


def problem_of(method: DisagreementDiscrepancy, evidence: Evidence) -> Problem:
    """The problem that the bound of a target trains on."""
    sides = []
    for features, logits, rows in (
        (evidence.source_features, evidence.source_logits, method.halves(evidence)[0]),
        (evidence.target_features, evidence.target_logits, method.halves(evidence)[1]),
    ):
        x, y = torch.from_numpy(features), torch.from_numpy(logits.argmax(1))
        sides.append(Side(x[rows[0]], y[rows[0]], x[rows[1]], y[rows[1]]))
    return Problem(sides[0], sides[1], evidence.classes, method.seed)


def main() -> None:
    """Measure and print."""
    quick = quick_asked(__doc__)
    evidence = targets()
    chosen = range(0, SHIFTS, 10) if quick else range(SHIFTS)
    method = DisagreementDiscrepancy("features", TRAINING)
    few = replace(method, training=replace(TRAINING, restarts=1))
    ours, peer, our_bounds, their_bounds = [], [], [], []
    for number in chosen:
        problem = problem_of(few, evidence[number])
        discrepancy, seconds = loop(problem, few.training, 0)
        peer.append(seconds * TRAINING.restarts)
        same = few.estimate(evidence[number])
        our_bounds.append(same.error_bound)
        their_bounds.append(same.source_error + discrepancy + same.epsilon)
        began = time.perf_counter()
        method.estimate(evidence[number])
        ours.append(time.perf_counter() - began)
    began = time.perf_counter()
    estimate_many([(method, evidence[number]) for number in chosen])
    together = time.perf_counter() - began
    speeds = ratio("critics a second, 30 restarts of a shift", [1 / s for s in ours], [1 / s for s in peer], 10)
    gap = statistics.fmean(our_bounds) - statistics.fmean(their_bounds)
    figures = [
        Figure(
            speeds.figure,
            speeds.value,
            "x",
            10,
            TRAINING.restarts / statistics.median(ours),
            TRAINING.restarts / statistics.median(peer),
        ),
        Figure(
            "bound minus the loop's, mean over shifts",
            gap,
            "",
            5e-4,
            statistics.fmean(our_bounds),
            statistics.fmean(their_bounds),
            at_most=True,
        ),
        Figure(f"{len(chosen)} shifts in one call", together, "s", None, together, sum(peer)),
    ]
    notes = [
        f"d = {WIDTH}, {CLASSES} classes, {ROWS:,} + {ROWS:,} rows, {TRAINING.epochs} epochs of {TRAINING.batch_size} rows; the two take turns, "
        f"{torch.get_num_threads()} thread(s) each",
        "the loop's time for 30 restarts is 30 times that of the one critic which is run for each shift",
        "both have the same first weights and orders of rows, so bounds may differ by rows whose logits tie; the bar is a few rows of 5,000",
    ]
    show("Error bounds", figures, notes)


if __name__ == "__main__":
    main()
