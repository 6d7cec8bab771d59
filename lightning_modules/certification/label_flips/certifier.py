"""`LabelFlipCertifier`: ridge regression smoothed over label noise, its certificates and the plain rule's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from lightning_modules.certification.label_flips.certificates import FlipCertificates, certify_sorted
from lightning_modules.certification.label_flips.exact import (
    Attack,
    check_labels,
    offsets,
    offsets_of,
    worst_case_flips,
)
from lightning_modules.certification.label_flips.ridge import (
    RidgeSystem,
    check_features,
    check_lam,
    span,
)
from lightning_modules.certification.label_flips.thresholds import (
    Floats,
    Ints,
    check_noise,
)
from lightning_modules.errors import InputError

Chunk = tuple[ArrayLike, ArrayLike]
Chunks = Iterable[Chunk] | Callable[[], Iterable[Chunk]]
"""Features [n, k] and labels [n] in parts, read again for every block of test points."""

_BLOCK = 1 << 22  # coefficients of a block of test points: 32 MiB


class LabelFlipCertifier:
    """Predictions that no change of r or fewer training labels can alter, with r for every test point.

    Labels are kept with probability 1-q and else drawn from the other classes; the smoothed rule answers the class that
    ridge regression on noisy labels most likely returns. With coefficients alpha(h) that no label enters (class c scores
    sum_i alpha_i 1[y_i = c]; two classes: sum_i alpha_i s_i, s_i = +-1, threshold 0) the probability of another answer
    is bounded without sampling, and by it the flips. The leader of the plain rule is also that of the noise's mean.

    More than two classes: the smoothed rule answers c where c wins every pairwise comparison with probability above 1/2,
    and the certificate is the least over the rivals.

    lam, q, the features and all preprocessing must not depend on the training labels; a lam chosen by cross-validation on
    labels that may be attacked voids the certificate. `RidgeSystem.label_free_lam` is a choice that does not.

    Args:
        lam: ridge penalty, above 0. Large values spread the coefficients: more flips are survived at some accuracy.
        q: noise rate, in (0, 1/2); K classes: in (0, (K-1)/K).
        task: "binary" (labels 0 and 1) or "multiclass" (labels 0..K-1).
        radius: which certificate `FlipCertificates.flips` is: "kl", the closed form, or "np", the tight one.
        constant: value of the constant column, see `RidgeSystem`.

    Raises:
        InputError: a value out of range.

    Example:
        >>> certifier = LabelFlipCertifier(lam=100.0, q=0.05).fit(train_features, train_labels)
        >>> certificates = certifier.certify(test_features)
        >>> certified_accuracy_curve(certificates.prediction, certificates.flips, test_labels, range(100))

    Source: Rosenfeld, Winston, Ravikumar & Kolter, "Certified Robustness to Label-Flipping Attacks via Randomized
    Smoothing", ICML 2020, arXiv 2002.03018. Labels coded +-1 with centred features, the Neyman-Pearson radius, the
    pairwise rule and the exact certificate are ours.
    """

    def __init__(self, lam: float, q: float, task: str = "binary", radius: str = "np", constant: float = 1.0) -> None:
        if task not in ("binary", "multiclass"):
            raise InputError(f"task: unknown {task!r}; choose binary or multiclass")
        if radius not in ("kl", "np"):
            raise InputError(f"radius: unknown {radius!r}; choose kl or np")
        self.lam, self.task, self.radius, self.constant = check_lam(lam), task, radius, constant
        # How many classes there are is known once labels are; no number of them allows q of 1.
        self.q = check_noise(q, 2) if task == "binary" else q
        if not 0 < q < 1:
            raise InputError(f"q: {q} is outside (0, 1); give e.g. 0.05")
        self.system = RidgeSystem(constant)
        self._chunks: Chunks = ()
        self._memory: tuple[Floats, Ints] | None = None  # of data given as a whole, what `_sorted_chunks` yields
        self._order: Ints | None = None  # and where its rows stood
        self._span: tuple[Floats, Floats] | None = None  # mean and basis, where there are more features than examples

    @property
    def num_classes(self) -> int:
        """K, known after fitting."""
        return len(self.system.label_counts)

    def fit(self, F: ArrayLike, y: ArrayLike) -> LabelFlipCertifier:
        """Take training features [n, k] and labels [n] in 0..K-1 that fit into memory; returns itself.

        Raises:
            InputError: features that are not finite numbers, labels that are not 0..K-1 or all of one class, lengths that
                differ, or q too large for K classes.
        """
        features, labels = check_features(F), check_labels(y)
        if labels.shape != features.shape[:1]:
            raise InputError(f"labels: have shape {list(labels.shape)}, F has {len(features)} rows; give one a row")
        order = np.argsort(labels, kind="stable")
        features, labels = features[order], labels[order]
        basis = None
        if features.shape[1] > len(features) > 0:
            mean = features.mean(0)
            basis = mean, span(features - mean)
            features = (features - mean) @ basis[1]
        self._finish(RidgeSystem(self.constant).update(features, labels))
        self._memory = _columns(features, self.system.mean), offsets(labels, self.num_classes)
        self._order, self._span, self._chunks = order, basis, ()
        return self

    def fit_stream(self, chunks: Chunks, system: RidgeSystem | None = None) -> LabelFlipCertifier:
        """Take training data larger than memory; returns itself.

        One pass gathers the sums; `certify` then makes one pass for each block of test points.

        Args:
            chunks: pairs of features [n, k] and labels [n], or a function that returns them. They are read several
                times, in any order but always the same examples.
            system: the chunks' sums where workers have gathered and merged them already; saves the first pass.

        Raises:
            InputError: as `fit`; or an iterator, which can be read only once.
        """
        if isinstance(chunks, Iterator):
            raise InputError("chunks: can be read only once; give a list, or a function that returns the chunks anew")
        if system is None:
            system = RidgeSystem(self.constant)
            for features, labels in _read(chunks):
                system.update(features, labels)
        self._finish(system)
        self._memory = self._order = self._span = None
        self._chunks = chunks
        return self

    def certify(self, H: ArrayLike, block: int | None = None) -> FlipCertificates:
        """Certify test points with features [m, k]; `block` of them are worked on at a time, by default 32 MiB's worth.

        A block holds one float64 a test point and training example, nothing larger.

        Raises:
            InputError: not fitted, features that are not finite numbers or of another width, or block below 1.
        """
        return self.sweep(H, block=block)[self.lam, self.q]

    def sweep(
        self,
        H: ArrayLike,
        lams: Sequence[float] | None = None,
        qs: Sequence[float] | None = None,
        block: int | None = None,
    ) -> dict[tuple[float, float], FlipCertificates]:
        """Certify test points for every lam and q, in the passes over the training data that one of them takes.

        All lam share one eigendecomposition, all q of a lam its coefficients and exact certificates.

        Args:
            H: features [m, k].
            lams: ridge penalties; by default the certifier's.
            qs: noise rates; by default the certifier's.
            block: test points at a time.

        Returns:
            Certificates by (lam, q).

        Raises:
            InputError: as `certify`, or a lam or q out of range.
        """
        test = self._test_features(H)
        lams = [check_lam(lam) for lam in ([self.lam] if lams is None else lams)]
        qs = [check_noise(q, self.num_classes) for q in ([self.q] if qs is None else qs)]
        if block is not None and block < 1:
            raise InputError(f"block: {block} is less than 1; give the number of test points to hold at a time")
        block = block or max(1, _BLOCK // (self.system.count * max(1, len(lams))))
        starts = offsets_of(self.system.label_counts)
        parts: dict[tuple[float, float], list[FlipCertificates]] = {(lam, q): [] for lam in lams for q in qs}
        buffers = [np.empty((min(block, len(test)), self.system.count)) for _ in lams]
        for first in range(0, max(1, len(test)), block):
            points = test[first : first + block]
            coefficients = [buffer[: len(points)] for buffer in buffers]
            leaders = self._coefficients(points, lams, coefficients)
            for lam, leader, values in zip(lams, leaders, coefficients, strict=True):
                for q, part in zip(qs, certify_sorted(values, starts, leader, qs, self.radius), strict=True):
                    parts[lam, q].append(part)
        return {key: FlipCertificates.concatenate(several) for key, several in parts.items()}

    def predict(self, H: ArrayLike) -> Ints:
        """Predict the classes [m] of features [m, k], by the plain rule and from the sums alone."""
        prediction: Ints = self.system.scores(self._test_features(H), self.lam).argmax(1)
        return prediction

    def worst_case_flips(self, h: ArrayLike, r: int | None = None) -> Attack:
        """Find the r label changes that hurt the plain rule's prediction at one point most.

        Args:
            h: features [k].
            r: number of changes; by default the fewest that alter the prediction, flips_exact + 1.

        Returns:
            Training examples by their position in the data (in a stream: in the order read) and their new labels.

        Raises:
            InputError: as `certify`, r out of range, or no r where no attack alters the prediction.
        """
        test = self._test_features(np.asarray(h)[None])
        alpha = np.empty((1, self.system.count))
        self._coefficients(test, [self.lam], [alpha], signed=False)
        labels = np.repeat(np.arange(self.num_classes), self.system.label_counts)
        attack = worst_case_flips(alpha[0], labels, self.num_classes, r)
        order = self._order
        if order is None:
            order = np.argsort(np.concatenate([check_labels(y) for _, y in _read(self._chunks)]), kind="stable")
        return Attack(order[attack.indices], attack.labels)

    def _finish(self, system: RidgeSystem) -> None:
        """Check what only the whole training data tells."""
        counts = system.label_counts
        if not system.count:
            raise InputError("F: has no rows; give training data")
        if len(counts) < 2:
            raise InputError("labels: are all 0; give examples of two classes or more")
        if (counts == 0).any():
            missing = int(np.argmin(counts))
            raise InputError(f"labels: none is {missing}, the largest is {len(counts) - 1}; number the classes 0..K-1")
        if self.task == "binary" and len(counts) > 2:
            raise InputError(f"labels: go up to {len(counts) - 1}; use 0 and 1, or task multiclass")
        check_noise(self.q, len(counts))
        self.system = system

    def _test_features(self, H: ArrayLike) -> Floats:
        if not self.system.count:
            raise InputError("F: there is no training data yet; call fit first")
        if self._span is None:
            return check_features(H, "H", self.system.width)
        mean, basis = self._span
        projected: Floats = (check_features(H, "H", len(mean)) - mean) @ basis
        return projected

    def _coefficients(self, test: Floats, lams: Sequence[float], out: list[Floats], signed: bool = True) -> list[Ints]:
        """Write each lam's coefficients to `out`, columns in order of the labels, in one pass over the data.

        Those of two classes get the sign with which they enter the predicted class's score, if `signed`.

        Args:
            test: features [m, k].
            lams: ridge penalties.
            out: an array [m, n] for each of them.
            signed: whether to give signs.

        Returns:
            Predictions [m] for each lam.
        """
        weights, leaders = [], []
        for factor in map(self.system.factor, lams):
            w = factor.weights(test)
            leader = self.system.scores_of(w, factor.bias).argmax(1)
            w = np.hstack([w, np.full((len(test), 1), factor.bias)])
            side = np.where(leader == 1, 1.0, -1.0)[:, None] if signed and self.num_classes == 2 else None
            weights.append([w] * self.num_classes if side is None else [-side * w, side * w])
            leaders.append(leader)
        ends = offsets_of(self.system.label_counts)
        filled = ends[:-1].copy()
        for features, starts in self._sorted_chunks():
            counts = np.diff(starts)
            if len(starts) != len(ends) or (filled + counts > ends[1:]).any():
                raise InputError("chunks: hold more examples of a class than before; return the same data every time")
            for c in np.flatnonzero(counts):
                part, columns = features[:, starts[c] : starts[c + 1]], slice(filled[c], filled[c] + counts[c])
                for sides, values in zip(weights, out, strict=True):
                    np.matmul(sides[c], part, out=values[:, columns])
            filled += counts
        if (filled != ends[1:]).any():
            raise InputError("chunks: hold fewer examples of a class than before; return the same data every time")
        return leaders

    def _sorted_chunks(self) -> Iterator[tuple[Floats, Ints]]:
        """Yield chunks in order of their labels: centred features and ones as columns [k+1, n], and where classes begin."""
        if self._memory is not None:
            yield self._memory
            return
        mean = self.system.mean
        for features, y in _read(self._chunks):
            values, labels = check_features(features, "F", len(mean)), check_labels(y)
            if (np.diff(labels) < 0).any():
                order = np.argsort(labels, kind="stable")
                values, labels = values[order], labels[order]
            yield _columns(values, mean), offsets(labels, self.num_classes)


def _columns(features: Floats, mean: Floats) -> Floats:
    """Centre features and add ones, as columns in memory's order [k+1, n]: what the product with weights reads fastest."""
    columns = np.ones((len(mean) + 1, len(features)))
    np.subtract(features.T, mean[:, None], out=columns[:-1])
    return columns


def _read(chunks: Chunks) -> Iterable[Chunk]:
    return chunks() if callable(chunks) else chunks
