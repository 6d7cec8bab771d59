"""Problems so small that all K^n label vectors can be tried: no certificate may be above what they show."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InputError
from cluster.trial import Trial
from jobs.claims import MetricRow, scalar_rows
from lightning_modules.certification.label_flips import (
    PartitionEnsemble,
    certify_alpha,
    chernoff_log_bound,
    exact_flips,
    np_flips,
)
from lightning_modules.certification.label_flips.thresholds import Floats, Ints


class _Vectors:
    """All label vectors [V, n], V = K^n, and between any two of them the number of labels that differ, [V, V]."""

    def __init__(self, n: int, classes: int) -> None:
        self.n, self.classes = n, classes
        self.labels = np.array(list(itertools.product(range(classes), repeat=n)))
        ones = (self.labels[..., None] == np.arange(classes)).reshape(len(self.labels), -1).astype(np.float64)
        self.distance = n - ones @ ones.T

    def find(self, labels: Ints) -> int:
        """Give the position of a label vector."""
        return int(labels @ self.classes ** np.arange(self.n)[::-1])

    def noise(self, q: float) -> Floats:
        """Compute the probability of each noisy vector (column) for each clean one (row)."""
        law: Floats = (1 - q) ** (self.n - self.distance) * (q / (self.classes - 1)) ** self.distance
        return law

    def radius(self, answers: Ints, here: int) -> int:
        """Compute the largest r such that every vector within r changes of one has its answer, at most n."""
        changed = answers != answers[here]
        return int(self.distance[here, changed].min()) - 1 if changed.any() else self.n

    def scores(self, alpha: Floats) -> Floats:
        """Compute the ridge rule's scores of every label vector, [V, K]."""
        return np.stack([(self.labels == c) @ alpha for c in range(self.classes)], 1)

    def wins(self, alpha: Floats) -> NDArray[np.bool_]:
        """Say of every label vector and pair of classes whether the first is preferred, ties to the smaller, [V, K, K]."""
        first, second = (np.expand_dims(self.scores(alpha), axis) for axis in (2, 1))
        smaller = np.less.outer(np.arange(self.classes), np.arange(self.classes))
        preferred: NDArray[np.bool_] = (first > second) | ((first == second) & smaller)
        return preferred


def _points(vectors: _Vectors, count: int, generator: np.random.Generator) -> tuple[Floats, Ints]:
    """Draw coefficients and labels [count, n] that mostly agree on class 0: certificates of 0 would test nothing."""
    labels = generator.integers(vectors.classes, size=(count, vectors.n))
    labels[:, : vectors.classes] = np.arange(vectors.classes)
    alpha = generator.uniform(0.1, 1, labels.shape) * np.where(labels == 0, 1, -1)
    return alpha + 0.3 * generator.standard_normal(labels.shape), labels


def run_brute_force(
    trial: Trial, folder: str, classes: int, n: int, points: int, q: float = 0.0, parts: int = 0
) -> list[MetricRow]:
    """Count violations over random problems."""
    vectors, generator = _Vectors(n, classes), np.random.default_rng(trial.stream("problems"))
    if trial.method == "ensembles":
        return _ensembles(vectors, parts, points, generator)
    alpha, labels = _points(vectors, points, generator)
    if trial.method == "exact":
        return _exact(vectors, alpha, labels)
    if trial.method == "Chernoff bound":
        return _bounds(vectors, alpha, labels, q)
    if trial.method == "certificates":
        return _certificates(vectors, alpha, labels, q)
    raise InputError(f"method: unknown {trial.method!r} of brute force; plan() lists them")


def _bounds(vectors: _Vectors, alpha: Floats, labels: Ints, q: float) -> list[MetricRow]:
    """Count bounds below the probability that noise lets the likeliest rival win."""
    law, violations = vectors.noise(q), 0
    for a, y in zip(alpha, labels, strict=True):
        here = vectors.find(y)
        lost = _lost(vectors, a, here, law)
        (bound,) = chernoff_log_bound(a[None], y, q, vectors.classes)
        violations += bool(np.exp(bound) < lost * (1 - 1e-12))
    return scalar_rows({"points": len(alpha), "violations": violations})


def _certificates(vectors: _Vectors, alpha: Floats, labels: Ints, q: float) -> list[MetricRow]:
    """Count points whose closed, tight or, with the probability in place of the bound, sharp number is above the truth."""
    law, classes = vectors.noise(q), vectors.classes
    violations, sharp, reached = 0, [], []
    for a, y in zip(alpha, labels, strict=True):
        here = vectors.find(y)
        preferred = np.tensordot(law, vectors.wins(a), 1) > 0.5
        best = np.all(preferred | np.eye(classes, dtype=bool), axis=2)
        answers = np.where(best.any(axis=1), best.argmax(axis=1), -1)
        reached.append(vectors.radius(answers, here))
        (c,) = certify_alpha(a[None], y, [q], classes)
        sharp.append(int(np_flips(np.log([max(_lost(vectors, a, here, law), 1e-300)]), q, classes)[0]))
        above = max(int(c.flips_kl[0]), int(c.flips_np[0]), sharp[-1]) > reached[-1]
        violations += above or (not c.abstain[0] and bool(answers[here] != c.prediction[0]))
    means = {"mean_sharp": float(np.mean(sharp)), "mean_true": float(np.mean(reached))}
    return scalar_rows({"points": len(alpha), "violations": violations, **means})


def _lost(vectors: _Vectors, alpha: Floats, here: int, law: Floats) -> float:
    """Probability that a rival of the leader is preferred to it under noise, for the likeliest."""
    leader = int(vectors.scores(alpha)[here].argmax())
    lost = law[here] @ ~vectors.wins(alpha)[:, leader]
    return float(np.delete(lost, leader).max())


def _exact(vectors: _Vectors, alpha: Floats, labels: Ints) -> list[MetricRow]:
    """Compare with the search; every second problem has small integers as coefficients, which tie often."""
    alpha[::2] = np.round(3 * alpha[::2])
    differ = 0
    for a, y in zip(alpha, labels, strict=True):
        true = vectors.radius(vectors.scores(a).argmax(1), vectors.find(y))
        differ += int(exact_flips(a[None], y, vectors.classes)[0]) != true
    return scalar_rows({"points": len(alpha), "violations": differ})


def _ensembles(vectors: _Vectors, parts: int, points: int, generator: np.random.Generator) -> list[MetricRow]:
    """Train the ensemble on every label vector that has all classes; `differ` counts costs that are not the truth."""
    n, classes = vectors.n, vectors.classes
    centers = 1.5 * generator.standard_normal((classes, 2))
    y = generator.choice(classes, size=n, p=[0.7, *[0.3 / (classes - 1)] * (classes - 1)])
    y[:classes] = np.arange(classes)
    features = centers[y] + generator.standard_normal((n, 2))
    test = centers.mean(0) + generator.standard_normal((points, 2))
    full = np.flatnonzero([len(set(labels)) == classes for labels in vectors.labels.tolist()])
    answers = np.full((len(vectors.labels), points), -1)
    for v in full:
        answers[v] = PartitionEnsemble(parts, 10).fit(features, vectors.labels[v]).certify(test).prediction
    here = vectors.find(y)
    answers = np.where(answers < 0, answers[here], answers)  # vectors without some class are out of the game
    true = np.array([vectors.radius(answers[:, i], here) for i in range(points)])
    counted, costed = (
        PartitionEnsemble(parts, 10, white_box).fit(features, y).certify(test).flips for white_box in (False, True)
    )
    violations = (counted > true).sum() + (costed > true).sum() + (costed < counted).sum()
    return scalar_rows({"points": points, "violations": violations, "differ": (costed != true).sum()})
