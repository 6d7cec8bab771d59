"""Cells on real data: certificates as curves, the attack that shows them exact, label noise drawn, and invariances."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from cluster.trial import Trial
from jobs.claims import MetricRow, scalar_rows
from jobs.papers.label_flip_certification.plans import TASKS, WHITE_BOX, wanted_files
from lightning_modules.certification.label_flips import (
    FeatureMap,
    LabelFlipCertifier,
    PartitionEnsemble,
    RidgeSystem,
    kl_flips,
    kl_per_flip,
    np_flips,
    worst_case_flips,
)
from lightning_modules.certification.label_flips.thresholds import Floats, Ints
from lightning_modules.errors import InputError

if TYPE_CHECKING:
    from lightning_modules.data.examples import Examples

_GRID = np.unique([*range(400), *(400 * 1.025 ** np.arange(320)).astype(int), 2000, 5952])
"""Numbers of flips that curves are stored at: each below 400, then in steps of 2.5%, up to a million; and those claimed."""


@dataclass(frozen=True)
class Problem:
    """Training and test data, their features computed without labels.

    Args:
        inputs: [n, d] of training.
        features: [n, k] of training.
        labels: [n] in 0..K-1.
        test: features [m, k].
        truth: [m].
        task: "binary" or "multiclass".
        test_name: what the test data are called in messages.
    """

    inputs: Floats
    features: Floats
    labels: Ints
    test: Floats
    truth: Ints
    task: str
    test_name: str

    def chunk(self, first: int, points: int) -> tuple[Floats, Ints]:
        """Take test points first to first + points, or as many of them as there are.

        Raises:
            InputError: there are none.
        """
        rows = slice(first, first + points)
        if not len(self.truth[rows]):
            raise InputError(
                f"{self.test_name}: has {len(self.truth)} examples, none from {first} on; give the whole set"
            )
        return self.test[rows], self.truth[rows]

    def certifier(self, q: float, lam: float | None, lam_scale: float | None) -> LabelFlipCertifier:
        """Fit the smoothed rule with the penalty given, or with one that no label enters."""
        certifier = LabelFlipCertifier(lam or 1.0, q, self.task).fit(self.features, self.labels)
        if lam_scale is not None:
            certifier.lam = certifier.system.label_free_lam(lam_scale)
        return certifier


@lru_cache(maxsize=1)  # the cells of one data set and feature map come in a row
def load_problem(data: str, folder: str, features: str) -> Problem:
    """Load built-in data or a task of the paper from a folder.

    Raises:
        InputError: naming the file, if it cannot be read, or its labels or width do not fit.
    """
    from lightning_modules.data.examples import load_examples

    if data in TASKS:
        classes = TASKS[data].classes
        names = [str(file) for file in wanted_files(data, folder)]
        train, test = (load_examples(name, "all", num_classes=classes) for name in names)
    else:
        names = [data, data]
        train, test = load_examples(data, "train"), load_examples(data, "test")
        classes = len(train.classes)
    inputs, points = _flat(train), _flat(test)
    if points.shape[1] != inputs.shape[1]:
        raise InputError(
            f"{names[1]}: has {points.shape[1]} inputs an example, {names[0]} {inputs.shape[1]}; make them equal"
        )
    counts = np.bincount(train.labels, minlength=classes)
    if not counts.all():
        raise InputError(f"{names[0]}: has no example of class {int(counts.argmin())}; give the whole set")
    mapped = FeatureMap.parse(features).fit(inputs)
    task = "binary" if classes == 2 else "multiclass"
    return Problem(inputs, mapped(inputs), train.labels, mapped(points), test.labels, task, names[1])


def _flat(examples: Examples) -> Floats:
    inputs = examples.inputs.reshape(len(examples), -1)
    return inputs.astype(np.float64) / (255 if examples.inputs.dtype == np.uint8 else 1)


def curve(metric: str, right: np.ndarray, flips: Ints, environment: str = "") -> list[MetricRow]:
    """Count the points predicted right and certified for at least r flips, with r as the step, down to the first zero."""
    certified = np.sort(np.where(right, flips, -1))
    last = int(np.searchsorted(_GRID, certified[-1], side="right"))
    steps = _GRID[: last + 1]
    counts = len(certified) - np.searchsorted(certified, steps, side="left")
    return [(int(r), environment, "test", metric, float(count)) for r, count in zip(steps, counts, strict=True)]


def run_ridge(
    trial: Trial,
    folder: str,
    data: str,
    features: str,
    q: str,
    first: int,
    points: int,
    lam: float | None = None,
    lam_scale: float | None = None,
) -> list[MetricRow]:
    """Certify test points with one penalty and several noise rates; each rate is an environment, "" the plain rule."""
    problem = load_problem(data, folder, features)
    test, truth = problem.chunk(first, points)
    qs = [float(rate) for rate in q.split()]
    certifier = problem.certifier(qs[0], lam, lam_scale)
    swept = certifier.sweep(test, qs=qs)
    rows: list[MetricRow] = []
    for rate in qs:
        c = swept[certifier.lam, rate]
        right, exact, at = c.prediction == truth, c.flips_exact, f"q={rate:g}"
        if not rows:
            rows += scalar_rows({"points": len(truth), "right": right.sum(), "lam": certifier.lam})
            rows += curve("exact", right, exact)
        divergence = kl_per_flip(rate, certifier.num_classes)
        figures = {
            "abstained": c.abstain.sum(),
            "kl_above_half": (c.flips_kl > (exact + 1) / 2).sum(),
            "np_above_exact": (c.flips_np > exact).sum(),
            "np_below_kl": (c.flips_np < c.flips_kl).sum(),
            "too_certain": (-c.log_wrong_prob > (exact + 1) * divergence).sum(),
            "largest_ratio": (np.maximum(c.flips_np, 0) / np.maximum(exact, 1)).max(),
        }
        rows += scalar_rows(figures, environment=at)
        rows += curve("kl", right, c.flips_kl, at) + curve("np", right, c.flips_np, at)
    return rows


def run_partition(
    trial: Trial,
    folder: str,
    data: str,
    features: str,
    parts: int,
    first: int,
    points: int,
    lam: float | None = None,
    lam_scale: float | None = None,
) -> list[MetricRow]:
    """Certify test points by votes of the parts, or by what the votes cost."""
    problem = load_problem(data, folder, features)
    test, truth = problem.chunk(first, points)
    if lam is None:
        lam = RidgeSystem().update(problem.features, problem.labels).label_free_lam((lam_scale or 1.0) / parts)
    white_box = trial.method == WHITE_BOX

    def certify(white_box: bool) -> tuple[Ints, Ints]:
        ensemble = PartitionEnsemble(parts, lam, white_box).fit(problem.features, problem.labels, problem.inputs)
        found = ensemble.certify(test)
        return found.prediction, found.flips

    prediction, flips = certify(white_box)
    right = prediction == truth
    rows = scalar_rows({"points": len(truth), "right": right.sum(), "lam": lam}) + curve("votes", right, flips)
    if white_box:
        rows += scalar_rows({"below_votes": (flips < certify(False)[1]).sum()})
    return rows


def run_attack(trial: Trial, folder: str, data: str, features: str, lam: float, largest: int) -> list[MetricRow]:
    """Attack plain ridge regression on two classes: flip the r labels that hurt a prediction most.

    With the exact number of flips and one more the rule is trained anew on the attacked labels; for the curve up to the
    largest number its scores are computed from the coefficients.
    """
    problem = load_problem(data, folder, features)
    labels, test, truth = problem.labels, problem.test, problem.truth
    certifier = problem.certifier(0.05, lam, None)
    c = certifier.certify(test)
    alpha = certifier.system.factor(lam).alpha(problem.features, test)
    turned = fallen = 0
    left = np.zeros((largest + 1, len(truth)), dtype=bool)
    signs = np.where(labels == 1, 1.0, -1.0)
    for i, exact in enumerate(c.flips_exact.tolist()):
        answers = []
        for r in (exact, exact + 1):
            attack = worst_case_flips(alpha[i], labels, r=r)
            attacked = labels.copy()
            attacked[attack.indices] = attack.labels
            system = RidgeSystem().update(problem.features, attacked)
            answers.append(int(system.scores(test[i : i + 1], lam).argmax()))
        fallen += answers[0] != c.prediction[i]
        turned += answers[1] != c.prediction[i]
        # Of two classes every attack is the beginning of the largest one; it may end where no flip hurts any more.
        hardest = worst_case_flips(alpha[i], labels, r=largest).indices
        scores = alpha[i] @ signs - 2 * np.cumsum(np.append(0.0, (alpha[i] * signs)[hardest]))
        scores = np.append(scores, np.full(largest + 1 - len(scores), scores[-1]))
        left[:, i] = (scores > 0) == (truth[i] == 1)
    right = c.prediction == truth
    left &= right  # of a wrong prediction the attacker need not change anything
    survives = right & (c.flips_exact >= np.arange(largest + 1)[:, None])
    figures = {
        "points": len(truth),
        "right": right.sum(),
        "turned": turned,
        "fallen": fallen,
        "differ": (left != survives).sum(),
    }
    return scalar_rows(figures) + [(r, "", "test", "attacked", float(n)) for r, n in enumerate(left.sum(1))]


def run_monte_carlo(
    trial: Trial, folder: str, data: str, features: str, q: float, lam: float, draws: int, points: int
) -> list[MetricRow]:
    """Compare the bound on the noisy rule's other answers with their frequency; two classes."""
    problem = load_problem(data, folder, features)
    labels, test = problem.labels, problem.test[:points]
    certifier = problem.certifier(q, lam, None)
    c = certifier.certify(test)
    alpha = certifier.system.factor(lam).alpha(problem.features, test)
    generator = np.random.default_rng(trial.stream("noise"))
    noisy = np.where(generator.random((draws, len(labels))) < q, 1 - labels, labels)
    other = (alpha @ (2.0 * noisy - 1).T > 0) != (c.prediction == 1)[:, None]
    frequency = other.mean(1)
    error = np.sqrt(np.maximum(frequency * (1 - frequency), 1 / draws) / draws)
    bound = np.exp(c.log_wrong_prob)
    least_certain = np.argsort(-bound)[:3]
    ratio = bound[least_certain] / np.maximum(frequency[least_certain], 1 / draws)
    below = (bound < frequency - 4 * error).sum()
    return scalar_rows({"points": points, "below": below, "least_ratio": ratio.min(), "largest_ratio": ratio.max()})


def run_invariances(trial: Trial, folder: str, data: str, features: str, q: float, lam: float) -> list[MetricRow]:
    """Count certificates that change where none may: other names of the classes, other units, other test points."""
    problem = load_problem(data, folder, features)
    train, labels, test = problem.features, problem.labels, problem.test

    def certify(c: float = 1.0, swap: bool = False, block: int | None = None) -> Ints:
        certifier = LabelFlipCertifier(lam * c * c, q, constant=c).fit(c * train, 1 - labels if swap else labels)
        found = certifier.certify(c * test, block)
        prediction = 1 - found.prediction if swap else found.prediction
        return np.stack([prediction, found.flips_kl, found.flips_np, found.flips_exact])

    plain = certify()
    others = {"swapped": certify(swap=True), "scaled": certify(8.0), "alone": certify(block=1)}
    return scalar_rows({name: float((plain != other).any(0).sum()) for name, other in others.items()})


KNOWN = ((0.05, 2), (0.1, 2), (0.3, 2), (0.45, 2), (0.05, 10), (0.0125, 10))
EXPONENTS = (2, 5, 10, 50)


def run_thresholds(trial: Trial, folder: str) -> list[MetricRow]:
    """Turn known probabilities B = 10^-step of the wrong class into flips, and compare both ways for many others."""
    rows: list[MetricRow] = []
    ratios, below = [], 0
    for q, classes in KNOWN:
        at = f"q={q:g}, K={classes}"
        log_b = -np.array(EXPONENTS) * math.log(10)
        closed, tight = kl_flips(log_b, q, classes), np_flips(log_b, q, classes)
        for exponent, a, b in zip(EXPONENTS, closed.tolist(), tight.tolist(), strict=True):
            rows += scalar_rows({"closed": a, "tight": b}, exponent, at)
        ratios.append(tight[-1] / closed[-1])
        many = -np.geomspace(0.7, 300, 500)
        below += int((np_flips(many, q, classes) < kl_flips(many, q, classes)).sum())
    before_floor = -math.log(4 * 0.01 * 0.99) / (2 * kl_per_flip(0.3))
    sure = np.array([-2000.0])
    figures = {
        "before_floor": before_floor,
        "np_below_kl": below,
        "least_ratio": min(ratios),
        "largest_ratio": max(ratios),
        "sure_closed": kl_flips(sure, 0.05)[0],
        "sure_tight": np_flips(sure, 0.05)[0],
    }
    return rows + scalar_rows(figures)
