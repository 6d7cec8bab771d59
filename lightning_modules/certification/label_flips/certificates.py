"""Certificates of predictions against flipped training labels, and the figures that are drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_modules.certification.label_flips.chernoff import TILE, binary_log_bound, rival_log_bounds
from lightning_modules.certification.label_flips.exact import (
    check_alpha,
    exact_flips_binary,
    exact_flips_sorted,
    offsets,
)
from lightning_modules.certification.label_flips.thresholds import (
    LOG_HALF,
    Floats,
    Ints,
    check_noise,
    kl_flips,
    np_flips,
)
from lightning_modules.errors import InputError


@dataclass(frozen=True)
class FlipCertificates:
    """Predictions of m test points and how many changed training labels each provably survives.

    Args:
        prediction: class [m] int64, of the smoothed rule where it does not abstain, and of the plain rule always.
        log_wrong_prob: ln B [m], B >= the probability of another answer under label noise.
        flips_kl: closed form [m] int64; -1 where abstained.
        flips_np: Neyman-Pearson bound [m] int64; -1 where abstained.
        flips_exact: exact number of the plain ridge rule [m] int64, at least 0 (it never abstains).
        abstain: [m], B >= 1/2.
        radius: "kl" or "np", which of the two `flips` is.
    """

    prediction: Ints
    log_wrong_prob: Floats
    flips_kl: Ints
    flips_np: Ints
    flips_exact: Ints
    abstain: NDArray[np.bool_]
    radius: str = "np"

    @property
    def flips(self) -> Ints:
        """Certified flips of the smoothed rule, [m]."""
        return self.flips_kl if self.radius == "kl" else self.flips_np

    @staticmethod
    def concatenate(parts: list[FlipCertificates]) -> FlipCertificates:
        """Put certificates of several blocks of test points, or of several workers, one after the other."""
        if not parts or len({part.radius for part in parts}) > 1:
            raise InputError("parts: are none or of different radius; give certificates of one kind")
        names = [field.name for field in fields(FlipCertificates) if field.name != "radius"]
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return FlipCertificates(**arrays, radius=parts[0].radius)


def certify_alpha(
    alpha: ArrayLike, labels: ArrayLike, qs: Sequence[float], num_classes: int = 2, radius: str = "np"
) -> list[FlipCertificates]:
    """Certify predictions that are linear in the labels, whatever made their coefficients.

    Args:
        alpha: [m, n], one row a test point; class c scores sum_i alpha_i 1[y_i = c]. No label may enter them.
        labels: [n] in 0..K-1.
        qs: noise rates.
        num_classes: K.
        radius: which certificate `FlipCertificates.flips` is, "kl" or "np".

    Returns:
        Certificates for every q.

    Raises:
        InputError: q out of range, arrays that do not fit, or a class without examples.
    """
    a, y = check_alpha(alpha, labels, num_classes)
    qs = [check_noise(q, num_classes) for q in qs]
    starts = offsets(y, num_classes)
    if (np.diff(starts) == 0).any():
        raise InputError(f"labels: none is {int(np.argmin(np.diff(starts)))}; give examples of every class")
    a = a[:, np.argsort(y, kind="stable")]
    leader = np.add.reduceat(a, starts[:-1], axis=1).argmax(1)
    if num_classes == 2:
        a[leader == 1, : starts[1]] *= -1
        a[leader == 0, starts[1] :] *= -1
    return certify_sorted(a, starts, leader, qs, radius)


def certify_sorted(
    coefficients: Floats, starts: Ints, leader: Ints, qs: Sequence[float], radius: str
) -> list[FlipCertificates]:
    """Certify coefficients [m, n] whose columns stand in order of their labels.

    Args:
        coefficients: alpha; of two classes, with the sign with which each enters the predicted class's score.
        starts: [K + 1], class c has the columns starts[c] to starts[c+1].
        leader: predictions of the plain rule, [m].
        qs: noise rates.
        radius: "kl" or "np".
    """
    (m, n), classes = coefficients.shape, len(starts) - 1
    log_bs = np.empty((len(qs), m))
    if classes == 2:
        exact = np.empty(m, dtype=np.int64)
        tile = max(1, 4 * TILE // n)  # a few rows, which stay in the cache while all is done with them
        for first in range(0, m, tile):
            rows = slice(first, first + tile)
            exact[rows] = exact_flips_binary(coefficients[rows], leader[rows] == 1)
            for log_b, q in zip(log_bs, qs, strict=True):
                log_b[rows] = binary_log_bound(coefficients[rows], q)
    else:
        scores = np.add.reduceat(coefficients, starts[:-1], axis=1)
        exact = exact_flips_sorted(coefficients, starts, scores)
        for log_b, q in zip(log_bs, qs, strict=True):
            log_b[:] = rival_log_bounds(coefficients, starts, q).max(1)
    return [
        FlipCertificates(
            prediction=leader,
            log_wrong_prob=log_b,
            flips_kl=np.minimum(kl_flips(log_b, q, classes), n),
            flips_np=np_flips(log_b, q, classes, limit=n),
            flips_exact=exact,
            abstain=log_b >= LOG_HALF,
            radius=radius,
        )
        for log_b, q in zip(log_bs, qs, strict=True)
    ]


def certified_accuracy_curve(
    predictions: ArrayLike, flips: ArrayLike, labels: ArrayLike, r_values: ArrayLike
) -> Floats:
    """Compute the share of test points that are predicted right and certified for at least r flips, for every r.

    An abstention (flips -1) is a wrong answer, also at r = 0.

    Args:
        predictions: [m].
        flips: certified flips [m], -1 where abstained.
        labels: the truth, [m].
        r_values: numbers of flips [R], each at least 0.

    Returns:
        [R].

    Raises:
        InputError: no test points, lengths that differ, or a negative r.
    """
    certified = _right_or_minus_one(predictions, flips, labels)
    r = np.asarray(r_values)
    if r.ndim != 1 or (r.size and r.min() < 0):
        raise InputError("r_values: must be a list of numbers of flips, each 0 or more")
    ordered = np.sort(certified)
    share: Floats = 1 - np.searchsorted(ordered, r, side="left") / len(ordered)
    return share


def median_flips(predictions: ArrayLike, flips: ArrayLike, labels: ArrayLike) -> float:
    """Compute the median of the certified flips, where a wrong or abstained prediction counts as -1.

    Args:
        predictions: [m].
        flips: certified flips [m], -1 where abstained.
        labels: the truth, [m].

    Raises:
        InputError: no test points, or lengths that differ.
    """
    return float(np.median(_right_or_minus_one(predictions, flips, labels)))


def _right_or_minus_one(predictions: ArrayLike, flips: ArrayLike, labels: ArrayLike) -> Ints:
    given = [np.asarray(values) for values in (predictions, flips, labels)]
    if given[0].ndim != 1 or not given[0].size or len({values.shape for values in given}) > 1:
        shapes = ", ".join(str(list(values.shape)) for values in given)
        raise InputError(f"predictions, flips, labels: have shapes {shapes}; give one of each a test point")
    return np.where(given[0] == given[2], given[1], -1).astype(np.int64)
