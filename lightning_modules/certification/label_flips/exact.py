"""Exact certificates of the plain ridge rule: the fewest label changes that alter a prediction, and which they are.

Scores S_c = sum_i alpha_i 1[y_i = c] are linear in the labels, so every change of a label lowers the leader's margin
over a rival by its own gain, whatever the others do: the r largest gains are the worst attack. Ties between classes go
to the smaller index. For two classes S_1 - S_0 is the score of labels in {-1, +1} and ties its sign.

These certificates are derived here, not taken from a paper; with the same coefficients no smoothed certificate of
`LabelFlipCertifier` is above them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_modules.certification.label_flips.thresholds import Floats, Ints
from lightning_modules.errors import InputError

_FEWEST = 1024  # gains looked at first: sorting them all costs little more


class Attack(NamedTuple):
    """Labels to change: `indices` [r] of training examples, hardest blow first, and their new `labels` [r]."""

    indices: Ints
    labels: Ints


def class_scores(alpha: Floats, labels: Ints, num_classes: int) -> Floats:
    """Compute S_c = sum_i alpha_i 1[y_i = c] of coefficients alpha [..., n] and labels [n] or [..., n]: [..., K]."""
    return np.stack([np.where(labels == c, alpha, 0.0).sum(-1) for c in range(num_classes)], -1)


def gains(alpha: Floats, labels: Ints, leader: ArrayLike, rival: ArrayLike) -> Floats:
    """Compute how much the best change of each label lowers S_leader - S_rival, [..., n]; all arguments broadcast."""
    from_leader, from_rival = labels == leader, labels == rival
    # A positive coefficient is best given to the rival, a negative one to the leader.
    steps = np.where(alpha > 0, 1.0 + from_leader - from_rival, 1.0 + from_rival - from_leader)
    gain: Floats = np.abs(alpha) * steps
    return gain


def affordable(costs: Floats, budget: Floats, strict: NDArray[np.bool_]) -> Ints:
    """Count for every row the largest r whose r largest costs sum to at most the budget (below it where strict).

    Args:
        costs: [m, n]; a negative one counts as 0.
        budget: [m].
        strict: [m].

    Returns:
        [m], 0 where not even one cost fits.
    """
    m, n = costs.shape
    counts = np.empty(m, dtype=np.int64)
    open_rows = np.arange(m)
    size = min(n, max(_FEWEST, n // 16))
    while len(open_rows):
        top = costs if len(open_rows) == m else costs[open_rows]
        if size < n:
            top = np.partition(top, n - size, axis=1)[:, n - size :]
        counts[open_rows] = _fits(_falling(top), budget[open_rows], strict[open_rows])
        open_rows = open_rows[(counts[open_rows] == size) & (size < n)]
        size = min(n, 4 * size)
    return counts


def exact_flips(alpha: ArrayLike, labels: ArrayLike, num_classes: int = 2) -> Ints:
    """Compute the largest r such that no change of r labels alters the prediction of the plain rule.

    Args:
        alpha: coefficients [m, n], one row a test point; they must not depend on labels.
        labels: [n] in 0..K-1.
        num_classes: K.

    Returns:
        [m], at least 0; an attack with one change more exists (`worst_case_flips`) unless the result is n.

    Raises:
        InputError: shapes or labels that do not fit.
    """
    a, y = check_alpha(alpha, labels, num_classes)
    order = np.argsort(y, kind="stable")
    a = a[:, order]
    scores = class_scores(a, y[order], num_classes)
    return exact_flips_sorted(a, offsets(y, num_classes), scores)


def worst_case_flips(alpha: ArrayLike, labels: ArrayLike, num_classes: int = 2, r: int | None = None) -> Attack:
    """Find the r label changes that hurt one prediction of the plain rule most.

    Args:
        alpha: coefficients [n] of the test point.
        labels: [n] in 0..K-1.
        num_classes: K.
        r: number of changes; by default the fewest that alter the prediction, which is `exact_flips` + 1.

    Returns:
        The changes. With r = `exact_flips` + 1 the plain rule trained on the changed labels predicts another class.

    Raises:
        InputError: shapes, labels or r that do not fit, or no r given where no attack at all alters the prediction.
    """
    a, y = check_alpha(np.asarray(alpha)[None], labels, num_classes)
    scores = class_scores(a, y, num_classes)[0]
    leader = int(scores.argmax())
    rivals = [d for d in range(num_classes) if d != leader]
    budgets = scores[leader] - scores[rivals]
    costs = np.stack([gains(a[0], y, leader, d) for d in rivals])
    counts = affordable(costs, budgets, np.array(rivals) < leader)
    if r is None:
        r = int(counts.min()) + 1
        if r > len(y):
            raise InputError("r: no attack alters this prediction; give the number of changes")
    if not 0 <= r <= len(y):
        raise InputError(f"r: {r} is outside 0..{len(y)}, the number of training labels; give a number in between")
    order = np.argsort(-costs, axis=1, kind="stable")[:, :r]
    # The rival that gets furthest; where several are as far, the one with the smallest index wins ties.
    best = int(np.argmin(budgets - np.take_along_axis(costs, order, 1).sum(1)))
    indices = order[best][costs[best, order[best]] > 0]
    new = np.where(a[0, indices] > 0, rivals[best], leader)
    return Attack(indices, new)


def exact_flips_sorted(alpha: Floats, starts: Ints, scores: Floats) -> Ints:
    """Compute `exact_flips` of coefficients [m, n] whose columns stand in order of their labels.

    Args:
        alpha: [m, n].
        starts: [K + 1], class c has the columns starts[c] to starts[c+1].
        scores: [m, K].
    """
    m, n = alpha.shape
    labels = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    result = np.empty(m, dtype=np.int64)
    tile = max(1, (1 << 16) // n)
    for first in range(0, m, tile):
        rows = slice(first, first + tile)
        result[rows] = _exact_tile(alpha[rows], labels, scores[rows])
    return result


def exact_flips_binary(terms: Floats, strict: NDArray[np.bool_]) -> Ints:
    """Compute `exact_flips` of two classes.

    Args:
        terms: b_i = alpha_i s_i with the sign of the score, [m, n].
        strict: where a tie goes against the leader, [m].
    """
    m, n = terms.shape
    result = np.empty(m, dtype=np.int64)
    tile = max(1, (1 << 16) // n)
    for first in range(0, m, tile):
        b = terms[first : first + tile]
        # Each flip costs 2 max(b_i, 0).
        result[first : first + tile] = affordable(b, 0.5 * np.maximum(b.sum(1), 0), strict[first : first + tile])
    return result


def check_alpha(alpha: ArrayLike, labels: ArrayLike, num_classes: int) -> tuple[Floats, Ints]:
    """Check coefficients [m, n] against labels [n] in 0..K-1; returns both as arrays."""
    a = np.asarray(alpha, dtype=np.float64)
    y = check_labels(labels)
    if a.ndim != 2 or y.shape != a.shape[1:] or not a.shape[1]:
        raise InputError(f"alpha: has shape {list(a.shape)}, labels {list(y.shape)}; give [points, n] and [n], n > 0")
    if not np.isfinite(a).all():
        raise InputError("alpha: has NaN or infinite coefficients; clean the features they come from")
    if y.max() >= num_classes:
        raise InputError(f"labels: {y.max()} is not below num_classes {num_classes}; number the classes 0..K-1")
    return a, y


def check_labels(labels: ArrayLike) -> Ints:
    """Check that labels are integers from 0 on; returns them as int64."""
    y = np.asarray(labels)
    if y.dtype.kind not in "iub":
        raise InputError(f"labels: are of type {y.dtype}, not integers; number the classes 0..K-1")
    y = y.astype(np.int64)
    if y.size and y.min() < 0:
        raise InputError(f"labels: {y.min()} is negative; number the classes 0..K-1")
    return y


def offsets(labels: Ints, num_classes: int) -> Ints:
    """Where each class begins once the labels are sorted, and the end: [K + 1]."""
    return offsets_of(np.bincount(labels, minlength=num_classes))


def offsets_of(counts: Ints) -> Ints:
    """Where each class begins, and the end, from the classes' sizes [K]: [K + 1]."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _falling(costs: Floats) -> Floats:
    """Sums of the 1, 2, ... largest costs of each row."""
    return np.cumsum(np.sort(np.maximum(costs, 0), axis=1)[:, ::-1], axis=1)


def _fits(sums: Floats, budget: Floats, strict: NDArray[np.bool_]) -> Ints:
    """How many of the rising sums [m, n] are within the budget [m]."""
    within = sums <= budget[:, None]
    within &= ~strict[:, None] | (sums < budget[:, None])
    count: Ints = within.sum(1)
    return count


def _exact_tile(alpha: Floats, labels: Ints, scores: Floats) -> Ints:
    """One look at the largest coefficients serves all rivals, since a gain is at most twice its coefficient."""
    m, n = alpha.shape
    leader = scores.argmax(1)
    margins = np.take_along_axis(scores, leader[:, None], 1) - scores
    margins[np.arange(m), leader] = np.inf
    nearest = np.argsort(margins, axis=1)[:, :-1]
    result = np.empty(m, dtype=np.int64)
    open_rows = np.arange(m)
    size = min(n, max(_FEWEST, n // 32))
    while len(open_rows):
        a, y = alpha[open_rows], np.broadcast_to(labels, (len(open_rows), n))
        complete = np.zeros(len(open_rows))  # gains above this are all among the chosen
        if size < n:
            chosen = np.argpartition(np.abs(a), n - size, axis=1)[:, n - size :]
            a, y = np.take_along_axis(a, chosen, 1), labels[chosen]
            complete = 2 * np.abs(a[:, 0])
        # No rival is overtaken with fewer flips than if every gain were twice its coefficient.
        most_gained = 2 * _falling(np.abs(a))
        floor = (most_gained[:, :, None] < margins[open_rows, None]).sum(1)
        least, most = (np.full(len(open_rows), n) for _ in range(2))
        for rival in nearest[open_rows].T:
            rows = np.flatnonzero(floor[np.arange(len(rival)), rival] < most)
            if not len(rows):
                break
            c, d = leader[open_rows[rows], None], rival[rows, None]
            top = np.sort(gains(a[rows], y[rows], c, d), axis=1)[:, ::-1]
            counts = _fits(np.cumsum(top, axis=1), margins[open_rows[rows], d[:, 0]], (d < c)[:, 0])
            if size < n:
                # Gains that were left out can lower a count, though not below the gains known to be the largest; where
                # all that were chosen fit, they can also raise it.
                known = np.minimum(counts, (top >= complete[rows, None]).sum(1))
                least[rows] = np.minimum(least[rows], known)
                counts[counts == size] = n
            most[rows] = np.minimum(most[rows], counts)
        result[open_rows] = most
        settled = (least == most) | (size == n)
        open_rows = open_rows[~settled]
        size = min(n, 4 * size)
    return result
