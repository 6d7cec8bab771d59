"""From the probability B of the wrong class under label noise to a number of label flips.

Noise keeps a label with probability 1-q and else draws one of the other K-1 classes, each with e = q/(K-1). Changing one
label moves the noise law by D = (1-q-e) ln((1-q)/e) nats, and by a log-likelihood ratio with values -L, 0, +L,
L = ln((1-q)/e).

`kl_flips` is the closed form of Rosenfeld, Winston, Ravikumar & Kolter, "Certified Robustness to Label-Flipping Attacks
via Randomized Smoothing", ICML 2020, arXiv 2002.03018. `np_flips` is the Neyman-Pearson bound, which uses the same
information, is never below it and for small B tends to twice it. All is done with ln B, which may be -2000 or less.
"""

from __future__ import annotations

import math
import threading
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_modules.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LOG_HALF = math.log(0.5)
"""At this ln B and above nothing is certified."""

_NEGLIGIBLE = 1e-30  # probabilities of the walk that change no threshold in float64
_LONGEST = 10_000_000  # thresholds that would take minutes


def check_noise(q: float, num_classes: int = 2) -> float:
    """Check the noise rate; returns it as a float.

    Raises:
        InputError: fewer than two classes, or q outside (0, (K-1)/K): there a label says more about another class.
    """
    if num_classes < 2:
        raise InputError(f"num_classes: {num_classes} is less than 2; certificates need two classes or more")
    most = (num_classes - 1) / num_classes
    if not 0 < q < most:
        raise InputError(f"q: {q} is outside (0, {most:.4g}) for {num_classes} classes; give e.g. 0.05")
    return float(q)


def kl_per_flip(q: float, num_classes: int = 2) -> float:
    """Compute D = (1-q-e) ln((1-q)/e), the nats of KL divergence that one changed label costs; two classes have e = q."""
    q = check_noise(q, num_classes)
    other = q / (num_classes - 1)
    return (1 - q - other) * math.log((1 - q) / other)


def kl_flips(log_b: ArrayLike, q: float, num_classes: int = 2) -> Ints:
    """Certify floor(-ln(4 B (1-B)) / (2 D)) flips.

    Args:
        log_b: ln B of any shape, B an upper bound on the probability of the wrong class under noise.
        q: noise rate.
        num_classes: K.

    Returns:
        Flips of the same shape; -1 where ln B >= ln 1/2 (abstained).

    Raises:
        InputError: q out of range, or ln B that is NaN or infinite.

    Source: arXiv 2002.03018, the KL form of the certificate (two classes); D of K classes follows in the same way.
    """
    b = _finite(log_b)
    divergence = kl_per_flip(q, num_classes)
    certified = b < LOG_HALF
    b = np.where(certified, b, LOG_HALF)
    flips = np.floor(-(math.log(4) + b + np.log1p(-np.exp(b))) / (2 * divergence))
    return np.where(certified, np.maximum(flips, 0), -1).astype(np.int64)


def np_flips(log_b: ArrayLike, q: float, num_classes: int = 2, limit: int | None = None) -> Ints:
    """Certify the largest r with B < B_crit(r), see `np_threshold_table`.

    Args:
        log_b: ln B of any shape, B an upper bound on the probability of the wrong class under noise.
        q: noise rate.
        num_classes: K.
        limit: results stop here; the number of training labels is a natural choice.

    Returns:
        Flips of the same shape; -1 where ln B >= ln 1/2 (abstained).

    Raises:
        InputError: q out of range, ln B that is NaN or infinite, or q so close to (K-1)/K that the table would have more
            than ten million entries.
    """
    b = _finite(log_b)
    q = check_noise(q, num_classes)
    if not b.size:
        return np.zeros(b.shape, dtype=np.int64)
    table = _walk(q, num_classes).down_to(float(b.min()), limit)
    return (np.searchsorted(-table, -b, side="left") - 1).astype(np.int64)


def np_threshold_table(q: float, r_max: int, num_classes: int = 2) -> Floats:
    """Compute ln B_crit(r) for r = 0..r_max: r flips are harmless if the wrong class has probability below B_crit(r).

    By Neyman and Pearson the worst event with probability 1/2 after r labels were changed is a lower set of the
    log-likelihood ratio; B_crit(r) is its probability before. For two classes: m the median of Bin(r, q) and g the
    share of its atom with P(Bin(r, q) < m) + g P(Bin(r, q) = m) = 1/2 give P(Bin(r, 1-q) < m) + g P(Bin(r, 1-q) = m).

    Args:
        q: noise rate.
        r_max: last r.
        num_classes: K.

    Returns:
        [r_max + 1], decreasing from ln 1/2. The law of the ratio is convolved directly; its tails underflow nothing,
        since before = after * exp(ratio) leaves only the neighbourhood of the median to be summed.

    Raises:
        InputError: q or r_max out of range.
    """
    if not 0 <= r_max <= _LONGEST:
        raise InputError(f"r_max: {r_max} is outside 0..{_LONGEST}; give the number of training labels or less")
    return _walk(check_noise(q, num_classes), num_classes).up_to(r_max)


class _Walk:
    """The log-likelihood ratio of r changed labels as a walk over a lattice, and the thresholds so far."""

    def __init__(self, q: float, num_classes: int) -> None:
        other = q / (num_classes - 1)
        self._height = math.log((1 - q) / other)
        # Law of the ratio after a change, from -height to +height.
        self._step = np.array([1 - q, other]) if num_classes == 2 else np.array([1 - q, q - other, other])
        self._spacing = 2 * self._height / (len(self._step) - 1)
        count = math.ceil(-math.log(_NEGLIGIBLE) / self._spacing) + 1
        self._decay = np.exp(-self._spacing * np.arange(count))
        self._divergence = kl_per_flip(q, num_classes)
        self._q = q
        self._law, self._first, self._median = np.ones(1), 0, 0  # law[i] stands at lattice point first + i
        self._table = np.full(1, LOG_HALF)
        self._filled = 1
        self._lock = threading.Lock()  # the walk is shared by all callers of one q

    def up_to(self, r_max: int) -> Floats:
        """Return the thresholds of r = 0..r_max."""
        with self._lock:
            while self._filled <= r_max:
                self._append()
            return self._table[: r_max + 1].copy()

    def down_to(self, log_b: float, limit: int | None) -> Floats:
        """Return the thresholds up to the first at or below log_b, or those of r <= limit."""
        # ln B_crit(r) <= -r D, so that is where the table must have ended.
        last = min(-log_b / self._divergence + 1, math.inf if limit is None else limit)
        if last > _LONGEST:
            raise InputError(
                f"q: {self._q} lets one point survive up to {last:.2g} flips, too many to count; give a limit or a smaller q"
            )
        with self._lock:
            while self._filled <= last and self._table[self._filled - 1] > log_b:
                self._append()
            end = self._filled if limit is None else min(self._filled, limit + 1)
            return self._table[:end]

    def _append(self) -> None:
        law = np.convolve(self._law, self._step)
        start, stop = 0, len(law)
        while law[start] < _NEGLIGIBLE:
            start += 1
        while law[stop - 1] < _NEGLIGIBLE:
            stop -= 1
        self._law = law = law[start:stop]
        self._first += start
        # One step moves the median by less than the step's length.
        below = np.cumsum(law[: self._median + len(self._step)])
        self._median = median = int(np.searchsorted(below, 0.5))
        start = max(0, median + 1 - len(self._decay))
        terms = law[start : median + 1] * self._decay[median - start :: -1]
        terms[-1] = 0.5 - (below[median - 1] if median else 0.0)
        ratio = self._spacing * (self._first + median) - self._filled * self._height
        if self._filled == len(self._table):
            self._table = np.concatenate([self._table, np.empty(max(64, self._filled))])
        self._table[self._filled] = ratio + math.log(terms.sum())
        self._filled += 1


@lru_cache(maxsize=64)
def _walk(q: float, num_classes: int) -> _Walk:
    return _Walk(q, num_classes)


def _finite(log_b: ArrayLike) -> Floats:
    b = np.asarray(log_b, dtype=np.float64)
    if not np.isfinite(b).all():
        raise InputError(f"log_b: {b[~np.isfinite(b)][0]} is no finite logarithm; give ln B, which is 0 for B = 1")
    return b
