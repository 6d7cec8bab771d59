"""Ridge regression whose sums are gathered chunk by chunk, so that neither memory nor one machine must hold the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lightning_modules.certification.label_flips.exact import check_labels
from lightning_modules.certification.label_flips.thresholds import Floats, Ints
from lightning_modules.errors import InputError


def check_features(features: ArrayLike, name: str = "F", width: int | None = None) -> Floats:
    """Check features [n, k]; returns them as float64.

    Raises:
        InputError: not two dimensions, no columns, NaN or infinite numbers, or another width than expected.
    """
    values = np.asarray(features)
    if values.ndim != 2 or not values.shape[1] or values.dtype.kind not in "fiub":
        raise InputError(
            f"{name}: is {values.dtype} of shape {list(values.shape)}; give numbers of shape [n, k], k > 0"
        )
    if width is not None and values.shape[1] != width:
        raise InputError(f"{name}: has {values.shape[1]} features, the training data {width}; use the same feature map")
    values = values.astype(np.float64, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        sound = math.isfinite(values.sum())  # a sum is quicker than a look at every number
    if not sound and not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values).all(1)))
        raise InputError(f"{name}: has NaN or infinite features, first in row {row}; clean or drop those rows")
    return values


def extend(features: Floats, mean: Floats) -> Floats:
    """Centre features [n, k] and add a column of ones: [n, k+1]."""
    extended = np.ones((len(features), len(mean) + 1))
    np.subtract(features, mean, out=extended[:, :-1])
    return extended


def check_lam(lam: float) -> float:
    """Check a ridge penalty; returns it as a float."""
    if not (math.isfinite(lam) and lam > 0):
        raise InputError(f"lam: {lam} is not positive; give e.g. 100")
    return float(lam)


@dataclass(frozen=True)
class RidgeFactor:
    """Coefficients alpha_i(h) = (f_i - mean)^T (scatter + lam I)^-1 (h - mean) + bias of one lam.

    Args:
        mean: of the training features, [k].
        basis: eigenvectors of the scatter matrix as columns, [k, k].
        shrink: 1 / (eigenvalue + lam), [k].
        bias: what the constant column adds to every coefficient.
    """

    mean: Floats
    basis: Floats
    shrink: Floats
    bias: float

    def weights(self, test: Floats) -> Floats:
        """Compute w = (scatter + lam I)^-1 (h - mean) of features h [m, k]: [m, k]."""
        weights: Floats = ((test - self.mean) @ self.basis * self.shrink) @ self.basis.T
        return weights

    def alpha(self, train: Floats, test: Floats) -> Floats:
        """Compute the coefficients [m, n] of test points [m, k] and training points [n, k]."""
        alpha: Floats = self.weights(test) @ (train - self.mean).T
        alpha += self.bias
        return alpha


class RidgeSystem:
    """Counts, means and the scatter matrix of training data, updated with chunks and merged in any order.

    Features are centred by their training mean, which no label enters, and get a constant column. The column is
    penalised like every other: labels centred by their own mean, or a constant without penalty, would let each flip move
    the intercept by 1/n however large lam is, and with scores that shrink in lam the intercept would then decide.

    Args:
        constant: value of the constant column; 0 leaves it out. Scaling features and this value by c and lam by c^2
            changes nothing.

    Attributes:
        count: examples so far.
        label_counts: [K], K one more than the largest label so far.
        class_means: of the features, [K, k].
        scatter: sum of (f - mean)(f - mean)^T, [k, k].

    Source of the update: Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances", 1979.
    """

    def __init__(self, constant: float = 1.0) -> None:
        if not math.isfinite(constant):
            raise InputError(f"constant: {constant} is not finite; give 1, or 0 for no constant column")
        self.constant = float(constant)
        self.label_counts: Ints = np.zeros(0, dtype=np.int64)
        self.class_means: Floats = np.zeros((0, 0))
        self.scatter: Floats = np.zeros((0, 0))
        self._eigen: tuple[Floats, Floats] | None = None

    @property
    def count(self) -> int:
        """Examples so far."""
        return int(self.label_counts.sum())

    @property
    def width(self) -> int | None:
        """Features of an example; None before the first chunk."""
        return self.scatter.shape[0] or None

    @property
    def mean(self) -> Floats:
        """Mean of the features, [k]."""
        mean: Floats = self.label_counts @ self.class_means / self.count
        return mean

    def update(self, F: ArrayLike, y: ArrayLike) -> RidgeSystem:
        """Add a chunk of features [n, k] and labels [n] in 0..K-1; returns itself.

        Raises:
            InputError: features that are not finite numbers or of another width, labels that are no integers from 0 on,
                or lengths that differ.
        """
        features = check_features(F, "F", self.width)
        labels = check_labels(y)
        if labels.shape != features.shape[:1]:
            raise InputError(f"labels: have shape {list(labels.shape)}, F has {len(features)} rows; give one a row")
        if not len(labels):
            return self
        chunk = RidgeSystem(self.constant)
        chunk.label_counts = np.bincount(labels)
        sums = np.zeros((len(chunk.label_counts), features.shape[1]))
        mean = features.mean(0)
        centred = features - mean
        for c in np.flatnonzero(chunk.label_counts):
            sums[c] = centred[labels == c].sum(0)
        chunk.class_means = mean + sums / np.maximum(chunk.label_counts, 1)[:, None]
        chunk.scatter = centred.T @ centred
        return self.merge(chunk)

    def merge(self, other: RidgeSystem) -> RidgeSystem:
        """Add the sums of another part of the training data; returns itself.

        Raises:
            InputError: features of another width, or another constant column.
        """
        if other.constant != self.constant:
            raise InputError(f"constant: is {other.constant} here and {self.constant} there; use one for all parts")
        if not other.count:
            return self
        if not self.count:
            self.label_counts, self.class_means = other.label_counts.copy(), other.class_means.copy()
            self.scatter = other.scatter.copy()
            self._eigen = None
            return self
        if other.width != self.width:
            raise InputError(f"F: has {other.width} features in one part and {self.width} in another; make them equal")
        apart = other.mean - self.mean
        self.scatter += other.scatter + np.outer(apart, apart) * (self.count * other.count / (self.count + other.count))
        classes = max(len(self.label_counts), len(other.label_counts))
        ours, theirs = (np.zeros(classes, dtype=np.int64) for _ in range(2))
        ours[: len(self.label_counts)], theirs[: len(other.label_counts)] = self.label_counts, other.label_counts
        means = np.zeros((classes, apart.shape[0]))
        means[: len(self.class_means)] = self.class_means
        shift = other.class_means - means[: len(other.class_means)]
        share = theirs / np.maximum(ours + theirs, 1)
        means[: len(other.class_means)] += shift * share[: len(other.class_means), None]
        self.label_counts, self.class_means, self._eigen = ours + theirs, means, None
        return self

    def factor(self, lam: float) -> RidgeFactor:
        """Prepare the coefficients of one lam; the eigendecomposition is done once for all of them.

        Raises:
            InputError: lam that is not positive, or no data yet.
        """
        lam = check_lam(lam)
        if not self.count:
            raise InputError("F: has no rows; give training data")
        if self._eigen is None:
            values, vectors = np.linalg.eigh(self.scatter)
            self._eigen = np.maximum(values, 0.0), vectors
        values, basis = self._eigen
        square = self.constant * self.constant
        return RidgeFactor(self.mean, basis, 1 / (values + lam), square / (self.count * square + lam))

    def scores(self, H: ArrayLike, lam: float) -> Floats:
        """Compute the scores S_c = sum_i alpha_i 1[y_i = c] of test features [m, k] from the sums alone, [m, K]."""
        factor = self.factor(lam)
        return self.scores_of(factor.weights(check_features(H, "H", self.width)), factor.bias)

    def scores_of(self, weights: Floats, bias: float) -> Floats:
        """Compute `scores` of a factor's weights [m, k] and bias."""
        centred = self.class_means - self.mean
        scores: Floats = (weights @ centred.T + bias) * self.label_counts
        return scores

    def label_free_lam(self, scale: float) -> float:
        """Compute lam = scale * trace(scatter) / k, a choice that no label enters and so leaves certificates valid."""
        if not self.count:
            raise InputError("F: has no rows; give training data")
        return check_lam(scale * float(np.trace(self.scatter)) / self.scatter.shape[0])


def span(centred: Floats) -> Floats:
    """Find an orthonormal basis [k, r] of the rows of centred features [n, k], by way of the n x n Gram matrix.

    In this basis ridge regression has r <= n features and the same coefficients: the dual form, for k > n.
    """
    values, vectors = np.linalg.eigh(centred @ centred.T)
    keep = values > values[-1] * len(values) * np.finfo(np.float64).eps
    basis: Floats = centred.T @ (vectors[:, keep] / np.sqrt(values[keep]))
    return basis
