"""Partition ensembles against flipped labels: one ridge learner a part of the training data, then a vote.

A flip reaches one part and so one vote. Counting votes alone is SS-DPA; counting also how many flips each part's vote
takes to move (its exact certificate) is never below it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lightning_modules.certification.label_flips.exact import affordable, check_labels, class_scores, gains
from lightning_modules.certification.label_flips.ridge import check_features, check_lam, extend
from lightning_modules.certification.label_flips.thresholds import Floats, Ints
from lightning_modules.errors import InputError

_BLOCK = 1 << 21  # coefficients of a block of test points


@dataclass(frozen=True)
class PartitionCertificates:
    """Predictions of m test points by vote.

    Args:
        prediction: class with the most votes [m] int64, of several the smallest.
        flips: label changes each prediction provably survives [m] int64, at least 0.
        votes: parts that vote for each class, [m, K] int64.
    """

    prediction: Ints
    flips: Ints
    votes: Ints


class PartitionEnsemble:
    """Ridge learners on the parts of a partition that no label enters, certified by their votes.

    Training inputs are sorted lexicographically, input j goes to part j mod k. All share the centring of the features by
    the training mean, which sees no label, and get a constant column, penalised like the rest. The prediction is the class
    with the most votes, ties to the smaller index, for a part's scores as for the votes.

    With white_box the cheapest attack is computed from what each part's vote costs. Two classes: exact, given the parts.
    More: the attacks on one rival are a knapsack over the parts (a vote moved from the leader to the rival closes the gap
    by 2, to another class, or from there to the rival, by 1) whose costs are lower bounds where three or more classes
    compete inside a part; so the certificate is valid, and may be below the truth.

    Args:
        k: number of parts.
        lam: ridge penalty of every part, above 0.
        white_box: use the parts' exact certificates.

    Raises:
        InputError: k below 1, or lam not positive.

    Source: Levine & Feizi, "Deep Partition Aggregation: Provable Defense against General Poisoning Attacks", ICLR 2021,
    arXiv 2006.14768 (SS-DPA, with ridge regression in place of its learners). The idea to use the parts' own
    certificates is that of EnsembleCert, arXiv 2604.11416; the form here is ours.
    """

    def __init__(self, k: int, lam: float, white_box: bool = False) -> None:
        if k < 1:
            raise InputError(f"k: {k} is less than 1; give the number of parts")
        self.k, self.lam, self.white_box = k, check_lam(lam), white_box
        self._num_classes = 0
        self._parts: list[tuple[Floats, Ints]] = []

    def fit(self, F: ArrayLike, y: ArrayLike, inputs: ArrayLike | None = None) -> PartitionEnsemble:
        """Divide the training data; returns itself.

        Args:
            F: features [n, k]; no label may enter them.
            y: labels [n] in 0..K-1.
            inputs: what the order is taken from, [n, d]; by default the features.

        Raises:
            InputError: features that are not finite numbers, labels that are not 0..K-1 or all of one class, lengths that
                differ, more parts than examples, or the same input twice: its copies would have no order but that of the
                file, which an attacker may know to depend on labels.
        """
        features, labels = check_features(F), check_labels(y)
        keys = features if inputs is None else check_features(inputs, "inputs")
        n = len(features)
        if labels.shape != (n,) or len(keys) != n:
            raise InputError(f"labels: have shape {list(labels.shape)}, F {n} rows, inputs {len(keys)}; give one a row")
        counts = np.bincount(labels)
        if len(counts) < 2 or (counts == 0).any():
            raise InputError(
                f"labels: have {counts.tolist()} examples of classes 0, 1, ...; give some of each, of 2 or more"
            )
        if self.k > n:
            raise InputError(f"k: {self.k} parts are more than the {n} training examples; give fewer")
        order = _lexicographic(keys)
        self._num_classes = len(counts)
        # Parts of one size are worked on at once; there are two sizes at most.
        parts = [order[j :: self.k] for j in range(self.k)]
        self._mean = features.mean(0)
        extended = extend(features, self._mean)
        self._parts = []
        for size in sorted({len(part) for part in parts}):
            rows = np.stack([part for part in parts if len(part) == size])
            self._parts.append((extended[rows], labels[rows]))
        return self

    def certify(self, H: ArrayLike) -> PartitionCertificates:
        """Predict and certify test points with features [m, k].

        Raises:
            InputError: not fitted, or features that are not finite numbers or of another width.
        """
        if not self._parts:
            raise InputError("F: there is no training data yet; call fit first")
        test = extend(check_features(H, "H", len(self._mean)), self._mean)
        n = sum(labels.size for _, labels in self._parts)
        learners = [_Learners(features, labels, self.lam, self._num_classes) for features, labels in self._parts]
        block = max(1, _BLOCK // n)
        votes = np.zeros((len(test), self._num_classes), dtype=np.int64)
        flips = np.zeros(len(test), dtype=np.int64)
        for first in range(0, len(test), block):
            points = slice(first, first + block)
            answers = [learner(test[points], self.white_box) for learner in learners]
            each = np.concatenate([answer[0] for answer in answers])
            votes[points] = (each[..., None] == np.arange(self._num_classes)).sum(0)
            if self.white_box:
                costs = np.concatenate([answer[1] for answer in answers])
                flips[points] = np.minimum(_white_box_flips(each, costs, votes[points]), n)
        prediction = votes.argmax(1)
        if not self.white_box:
            gaps = _gaps(votes)
            flips = (
                np.min(
                    (gaps + 1) // 2, axis=1, where=np.arange(self._num_classes) != prediction[:, None], initial=n + 1
                )
                - 1
            )
        return PartitionCertificates(prediction, flips, votes)


class _Learners:
    """Ridge regression on P parts of s examples each, features [P, s, k] with the constant column, labels [P, s]."""

    def __init__(self, features: Floats, labels: Ints, lam: float, num_classes: int) -> None:
        self.labels, self.num_classes = labels, num_classes
        _, size, width = features.shape
        # alpha(h) = (F F^T + lam I)^-1 F h = F (F^T F + lam I)^-1 h, whichever matrix is smaller.
        if size <= width:
            self.solved = np.linalg.solve(features @ features.mT + lam * np.eye(size), features)
        else:
            self.solved = np.linalg.solve(features.mT @ features + lam * np.eye(width), features.mT).mT

    def __call__(self, test: Floats, with_costs: bool) -> tuple[Ints, Ints]:
        """Compute each part's vote [P, m], and what it costs to make it vote for each class [P, m, K], 0 for its own."""
        alpha = np.ascontiguousarray((self.solved @ test.T).mT)  # [P, m, s]
        labels = self.labels[:, None, :]
        scores = class_scores(alpha, labels, self.num_classes)
        votes = scores.argmax(-1)
        costs = np.zeros(scores.shape, dtype=np.int64)
        if with_costs:
            size = alpha.shape[-1]
            labels = np.broadcast_to(labels, alpha.shape).reshape(-1, size)
            alpha, flat = alpha.reshape(-1, size), scores.reshape(-1, self.num_classes)
            cost = costs.reshape(-1, self.num_classes)
            for winner in range(self.num_classes):
                # To vote for the winner, it must overtake every class that is ahead of it now.
                for loser in range(self.num_classes):
                    margin = flat[:, loser] - flat[:, winner]
                    rows = np.flatnonzero((margin >= 0) if loser < winner else (margin > 0))
                    if loser == winner or not len(rows):
                        continue
                    against = np.full(len(rows), winner < loser)
                    count = affordable(gains(alpha[rows], labels[rows], loser, winner), margin[rows], against) + 1
                    cost[rows, winner] = np.maximum(cost[rows, winner], count)
        return votes, costs


def _gaps(votes: Ints) -> Ints:
    """How much each class must gain on the leader to be predicted in its place, [m, K]; a vote moved there gains 2."""
    leader = votes.argmax(1)[:, None]
    gaps: Ints = np.take_along_axis(votes, leader, 1) - votes + (np.arange(votes.shape[1]) > leader)
    return gaps


def _white_box_flips(each: Ints, costs: Ints, votes: Ints) -> Ints:
    """Find the cheapest attack over all rivals, less one.

    Args:
        each: part's votes [P, m].
        costs: of each part's vote for each class [P, m, K].
        votes: [m, K].
    """
    parts, m, classes = costs.shape
    leader = votes.argmax(1)
    gaps = _gaps(votes)
    own = np.arange(classes) == each[..., None]
    never = 1 << 29  # two of them fit into int32
    best = np.full(m, never)
    for rival in range(classes):
        rows = np.flatnonzero(leader != rival)
        if not len(rows):
            continue
        vote, cost = each[:, rows], costs[:, rows]
        from_leader, elsewhere = vote == leader[rows], (vote != leader[rows]) & (vote != rival)
        third = np.where(own[:, rows] | (np.arange(classes) == rival), never, cost).min(-1)
        by_two = np.where(from_leader, cost[..., rival], never)
        by_one = np.where(from_leader, third, np.where(elsewhere, cost[..., rival], never))
        best[rows] = np.minimum(best[rows], _knapsack(by_one, by_two, gaps[rows, rival], never))
    return best - 1


def _knapsack(by_one: Ints, by_two: Ints, goal: Ints, never: int) -> Ints:
    """Least cost of gains that sum to the goal [m] or more; each of P items gains 1 at one cost or 2 at another, [P, m]."""
    least = np.full((int(goal.max()) + 1, len(goal)), never, dtype=np.int32)  # least[g]: cost of a gain of g or more
    least[0] = 0
    for one, two in zip(by_one.astype(np.int32), by_two.astype(np.int32), strict=True):
        with_one, with_two = least[:-1] + one, least[:-2] + two
        np.minimum(least[1:], with_one, out=least[1:])
        np.minimum(least[2:], with_two, out=least[2:])
        np.minimum(least[1], two, out=least[1])
    return least[goal, np.arange(len(goal))].astype(np.int64)


def _lexicographic(inputs: Floats) -> Ints:
    """Order the inputs, of which no two may be the same."""
    distinct, order = np.unique(inputs, axis=0, return_index=True)
    if len(distinct) < len(inputs):
        copy = int(np.setdiff1d(np.arange(len(inputs)), order)[0])
        raise InputError(
            f"inputs: row {copy} is there more than once; drop duplicates, the partition must not see labels"
        )
    return order
