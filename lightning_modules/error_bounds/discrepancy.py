"""The disagreement-discrepancy bound: the source error, plus what the most adversarial simple critic adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_modules.error_bounds.concentration import concentration_term
from lightning_modules.error_bounds.critics import Critics, Problem, Side, Training, train_critics
from lightning_modules.error_bounds.evidence import Array, Estimate, Evidence, error_rate
from lightning_modules.error_bounds.losses import KINDS
from lightning_modules.errors import InputError

SPACES = ("logits", "features", "pca:1", "pca:4", "pca:16", "pca:32", "pca:64", "pca:128")
"""Feature spaces: the classifier's logits, its penultimate features, or these projected on d / j singular vectors."""

_LEAST_DIRECTIONS = 4


@dataclass(frozen=True)
class DiscrepancyResult:
    """The bound, and all that it is made of.

    Args:
        feature_space: of the critics.
        error_bound: holds with probability 1 - delta if the assumption does; in [0, 1].
        error_estimate: the same without the concentration term: no bound.
        discrepancy: largest validation disagreement in the target minus that in the source.
        source_error: of the classifier, on the source's validation rows.
        epsilon: concentration term.
        delta: of it.
        n_source_val: rows that the bound is evaluated on.
        n_target_val: rows that it is evaluated on.
        stability: how steadily agreement with the source rose, the least over restarts, in [0, 1].
        critics: the trained critics.
        target_rows: [n_target_val] which rows of the target these were.
    """

    feature_space: str
    error_bound: float
    error_estimate: float
    discrepancy: float
    source_error: float
    epsilon: float
    delta: float
    n_source_val: int
    n_target_val: int
    stability: float
    critics: Critics
    target_rows: Array

    def estimates(self) -> tuple[Estimate, Estimate]:
        """Give the bound and the estimate without concentration, as every method's result is given."""
        details = (
            ("discrepancy", self.discrepancy),
            ("source_error", self.source_error),
            ("epsilon", self.epsilon),
            ("n_source", float(self.n_source_val)),
            ("n_target", float(self.n_target_val)),
            ("stability", self.stability),
        )
        name = f"Dis2 {self.feature_space}"
        return (
            Estimate(name, self.error_bound, "bound", self.delta, details),
            Estimate(f"{name} w/o delta", self.error_estimate, "estimate", None, details),
        )


@dataclass(frozen=True)
class DisagreementDiscrepancy:
    """Bounds a classifier's error in the target.

    err_T(h) = err_S(h) + Delta(h, y*), where Delta(h, h') = P_T[h != h'] - P_S[h != h'] and y* is the true labelling. So
    err_T <= err_S + Delta(h, critic) + eps with probability 1 - delta, if y* is not worse for h than the most adversarial
    critic found. The critics are linear on frozen features; half of the rows train them, the other half measure, and the
    largest value over restarts and epochs is taken, which errs on the safe side.

    Args:
        feature_space: "logits" (tightest), "features", or "pca:J", the features on their top d / J right singular vectors
            (uncentred, of the source's training half).
        training: how critics are trained.
        val_frac: share of the rows that the bound is evaluated on.
        delta: probability that the bound fails although its assumption holds.
        seed: of the split and the critics.

    Raises:
        InputError: for options out of range.

    Source: Rosenfeld & Garg 2023; restarts, optimiser, split and selection as in its code. Where its code returns the last
    epoch's critic, the one of the maximum is returned here.

    Example:
        >>> result = DisagreementDiscrepancy("logits").estimate(evidence)  # doctest: +SKIP
        >>> result.error_bound  # doctest: +SKIP
    """

    feature_space: str = "logits"
    training: Training = Training()
    val_frac: float = 0.5
    delta: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        check_space(self.feature_space)
        if not 0 < self.val_frac < 1:
            raise InputError(f"val_frac: {self.val_frac} is not between 0 and 1; 0.5 is usual")
        for name in ("restarts", "epochs", "batch_size"):
            if getattr(self.training, name) < 1:
                raise InputError(f"{name}: {getattr(self.training, name)} is too small; give 1 or more")
        if self.training.loss not in KINDS:
            raise InputError(f"loss: unknown {self.training.loss!r}; choose one of {', '.join(KINDS)}")
        concentration_term(1, 1, self.delta)

    def estimate(self, evidence: Evidence) -> DiscrepancyResult:
        """Train critics on a target and give the bound.

        Raises:
            InputError: where a half of the rows is empty.
        """
        return estimate_many([(self, evidence)])[0]

    def halves(self, evidence: Evidence) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Split both domains' rows at random: (train, validation) of the source, and of the target."""
        generator = np.random.default_rng([self.seed, 0])
        halves = []
        for side, count in (("source", len(evidence.source_labels)), ("target", len(evidence.target_logits))):
            order, validation = generator.permutation(count), int(count * self.val_frac)
            if not 0 < validation < count:
                raise InputError(f"{side}: {count} rows leave a half empty; give more rows")
            halves.append((order[: count - validation], order[count - validation :]))
        return halves[0], halves[1]


def check_space(space: str) -> int | None:
    """Return the divisor of "pca:J", None for the other spaces.

    Raises:
        InputError: for any other name.
    """
    if space in ("logits", "features"):
        return None
    kind, _, divisor = space.partition(":")
    if kind != "pca" or not divisor.isdecimal() or int(divisor) < 1:
        raise InputError(f"feature_space: unknown {space!r}; choose logits, features or pca:J, e.g. pca:16")
    return int(divisor)


def spaces_of(width: int, spaces: Sequence[str]) -> list[str]:
    """Keep the spaces that `width` features can have: a projection needs 4 directions or more."""
    return [s for s in spaces if (j := check_space(s)) is None or width // j >= _LEAST_DIRECTIONS]


def estimate_many(tasks: Sequence[tuple[DisagreementDiscrepancy, Evidence]]) -> list[DiscrepancyResult]:
    """Bound many targets, or one in many feature spaces: their critics train together, each as it would alone.

    Args:
        tasks: the method and what it is given; all with equal `training`.

    Raises:
        InputError: for differing `training`, an empty half, or too few directions for a projection.
    """
    if len({method.training for method, _ in tasks}) > 1:
        raise InputError("training: differs between the tasks; train each kind by itself")
    halves = [method.halves(evidence) for method, evidence in tasks]
    problems, bases = [], {}
    for (method, evidence), (source, target) in zip(tasks, halves, strict=True):
        if method.feature_space == "logits":
            spaces = evidence.source_logits, evidence.target_logits
        else:
            spaces = evidence.source_features, evidence.target_features
            if (divisor := check_space(method.feature_space)) is not None:
                key = (id(evidence.source_features), method.seed, method.val_frac)
                if key not in bases:
                    bases[key] = singular_vectors(evidence.source_features[source[0]])
                basis = _top(bases[key], divisor)
                spaces = spaces[0] @ basis, spaces[1] @ basis
        sides = [
            Side(*(_tensors(space, logits, rows)))
            for space, logits, rows in (
                (spaces[0], evidence.source_logits, source),
                (spaces[1], evidence.target_logits, target),
            )
        ]
        problems.append(Problem(sides[0], sides[1], evidence.classes, method.seed))
    found = train_critics(problems, tasks[0][0].training) if tasks else []
    return [
        result_of(method, evidence, source, target, critics)
        for (method, evidence), (source, target), critics in zip(tasks, halves, found, strict=True)
    ]


def _tensors(space: Array, logits: Array, rows: tuple[Array, Array]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    train, validation = (torch.from_numpy(np.ascontiguousarray(space[part], dtype=np.float32)) for part in rows)
    predictions = torch.from_numpy(logits.argmax(axis=1))
    return train, predictions[rows[0]], validation, predictions[rows[1]]


def singular_vectors(features: Array) -> Array:
    """Right singular vectors [d, d] of features [n, d], not centred, the largest first.

    By the eigenvectors of X'X in double precision: a product and a decomposition of d x d, whatever n is.
    """
    x = features.astype(np.float64)
    _, vectors = np.linalg.eigh(x.T @ x)
    found: Array = vectors[:, ::-1].astype(features.dtype)
    return found


def _top(basis: Array, divisor: int) -> Array:
    count = len(basis) // divisor
    if count < _LEAST_DIRECTIONS:
        raise InputError(f"feature_space: pca:{divisor} leaves {count} of {len(basis)} directions; 4 are the least")
    return basis[:, :count]


def result_of(
    method: DisagreementDiscrepancy,
    evidence: Evidence,
    source: tuple[Array, Array],
    target: tuple[Array, Array],
    critics: Critics,
    space: str | None = None,
) -> DiscrepancyResult:
    """Make the bound of trained critics.

    Args:
        method: its delta counts.
        evidence: of the target.
        source: rows of the source that critics trained and were measured on.
        target: rows of the target.
        critics: trained.
        space: name of the feature space; None: the method's.
    """
    n_source, n_target = len(source[1]), len(target[1])
    source_error = error_rate(evidence.source_logits[source[1]], evidence.source_labels[source[1]])
    epsilon = concentration_term(n_source, n_target, method.delta)
    total = source_error + critics.discrepancy
    return DiscrepancyResult(
        space or method.feature_space,
        min(1.0, max(0.0, total + epsilon)),
        min(1.0, max(0.0, total)),
        critics.discrepancy,
        source_error,
        epsilon,
        method.delta,
        n_source,
        n_target,
        stability_score(critics.source_agreement),
        critics,
        target[1],
    )


def stability_score(agreement: Tensor) -> float:
    """How steadily critics came to agree with the classifier on the source, the least over restarts, in [0, 1].

    For one critic it is its largest agreement over the length of the curve that led there: 1 for a curve that only rises.

    Args:
        agreement: [epochs, R] on the source's validation rows.

    Source: the paper's code.
    """
    first = agreement[:1].abs()
    length = torch.cat([first, agreement.diff(dim=0).abs()]).cumsum(0)
    top, where = agreement.max(0)
    ratios = (top / length.gather(0, where[None])[0]).nan_to_num(0.0)
    return float(ratios.min())


def select_by_stability(results: Sequence[DiscrepancyResult], threshold: float = 0.95) -> DiscrepancyResult:
    """Choose the tightest bound among logits and every other space whose stability is above a threshold.

    Args:
        results: of one target, in several feature spaces, the logits' among them.
        threshold: 0.95, 0.9 and 0.8 in the paper's figure; the lower, the tighter and the less safe.

    Raises:
        InputError: without a result on logits.
    """
    if not any(result.feature_space == "logits" for result in results):
        raise InputError("feature_space: logits is missing; it is what is fallen back on")
    stable = [r for r in results if r.feature_space == "logits" or r.stability > threshold]
    return min(stable, key=lambda result: result.error_bound)


def bound_of_critic(
    evidence: Evidence, source_critic: Array, target_critic: Array, delta: float = 0.01
) -> tuple[float, float]:
    """Evaluate the bound for one given critic, all rows being validation rows.

    Args:
        evidence: of the target.
        source_critic: [n_S] classes that the critic predicts.
        target_critic: [n_T].
        delta: of the bound.

    Returns:
        The bound, and err_S + Delta(h, critic) without concentration: the target's error itself, where the critic is the
        true labelling.
    """
    ours = evidence.source_logits.argmax(axis=1), evidence.target_logits.argmax(axis=1)
    gap = float((ours[1] != target_critic).mean() - (ours[0] != source_critic).mean())
    total = error_rate(evidence.source_logits, evidence.source_labels) + gap
    return total + concentration_term(len(source_critic), len(target_critic), delta), total
