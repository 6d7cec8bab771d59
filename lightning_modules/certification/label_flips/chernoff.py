"""Deterministic bounds on the probability that label noise turns a ridge prediction: Chernoff's, t chosen well.

For a sum of independent terms z_i, P(sum <= 0) <= prod_i E exp(-t z_i) for every t >= 0. So how t is found matters only
for how tight the bound is. Of many terms a sample finds t by Newton's method, its exponent corrected to have the first
two derivatives of the whole at t = 0. Then a pass over all terms computes the bound itself, with a margin for rounding;
where the slope there shows that the sample erred (heavy tails), Newton's method goes on with all terms.

Source: Rosenfeld et al., "Certified Robustness to Label-Flipping Attacks via Randomized Smoothing", ICML 2020, arXiv
2002.03018, which bounds the same probability in the same way; the choice of t and the pairwise form for more than two
classes are ours.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike

from lightning_modules.certification.label_flips.exact import check_alpha, offsets
from lightning_modules.certification.label_flips.thresholds import Floats, Ints, check_noise

TILE = 1 << 16
"""Numbers a pass works on at once: they stay in the cache."""

_SAMPLE = 2048  # terms of the sample that t is sought on
_LOST = 0.003  # of the exponent by the sample's t, if the sample's curvature is right: more is not accepted
_STEPS = 12
_TOLERANCE = 0.03  # of the exponent, before the last Newton step
_ROUNDING = 64 * float(np.finfo(np.float64).eps)  # of a sum, against the sum of magnitudes


class _Exponent(Protocol):
    """ln prod_i E exp(-t z_i) of several test points."""

    def slope(self, t: Floats) -> tuple[Floats, Floats]:
        """Compute its first and second derivative at t [m], a t each: [m] each."""


def chernoff_log_bound(alpha: ArrayLike, labels: ArrayLike, q: float, num_classes: int = 2) -> Floats:
    """Bound ln P(noise turns the comparison of the leader with a rival), for the rival where that is likeliest.

    Args:
        alpha: coefficients [m, n], one row a test point; class c scores sum_i alpha_i 1[y_i = c].
        labels: [n] in 0..K-1.
        q: noise rate: a label is kept with probability 1-q, else it is one of the other K-1.
        num_classes: K.

    Returns:
        ln B [m], at most 0. Every rival's probability to beat or tie the leader is at most B.

    Raises:
        InputError: q out of range, or arrays that do not fit.
    """
    q = check_noise(q, num_classes)
    a, y = check_alpha(alpha, labels, num_classes)
    if num_classes == 2:
        signed = a * np.where(y == 1, 1.0, -1.0)
        signed *= np.where(signed.sum(1) > 0, 1.0, -1.0)[:, None]
        return binary_log_bound(signed, q)
    order = np.argsort(y, kind="stable")
    bounds: Floats = rival_log_bounds(a[:, order], offsets(y, num_classes), q).max(1)
    return bounds


def binary_log_bound(terms: Floats, q: float) -> Floats:
    """Bound ln P(sum_i b_i z_i <= 0), z_i = 1 with probability 1-q and else -1: min_t sum_i ln E exp(-t b_i z_i).

    Args:
        terms: b [m, n], such that the predicted class has the positive sum.
        q: noise rate in (0, 1/2).

    Returns:
        [m], at most 0.
    """
    m, n = terms.shape
    result = np.empty(m)
    stride = n // _SAMPLE
    sample = terms[:, ::stride] if stride > 1 else terms
    group = max(1, TILE // sample.shape[1])
    for first in range(0, m, group):
        rows = slice(first, first + group)
        whole = _Binary(terms[rows], q)
        mean, variance = (1 - 2 * q) * whole.sum, 4 * q * (1 - q) * whole.squares
        if sample is terms:
            result[rows] = whole.at(_newton(whole, mean, variance))[0]
            continue
        t, curvature = _from_sample(_Binary(np.ascontiguousarray(sample[rows]), q), mean, variance)
        result[rows], slope = whole.at(t)
        # Not a number, of a product that overflows, goes on as well.
        good = slope * slope <= -2 * _LOST * curvature * result[rows]
        astray = np.flatnonzero(~good & (mean > 0))
        if len(astray):
            again = _Binary(terms[first + astray], q)
            t = _newton(again, mean[astray], variance[astray], t[astray])
            result[first + astray] = np.minimum(result[first + astray], again.at(t)[0])
    return np.minimum(result, 0.0)


class _Binary:
    """The exponent of terms b_i z_i, z_i = +-1: ln E = ln(1-q) - t b + ln(1 + e^x), x = 2 t b - 2 theta, e^-2theta = q/(1-q).

    Its derivatives are those of ln cosh(t b - theta).
    """

    def __init__(self, terms: Floats, q: float) -> None:
        self.terms, self.q = terms, q
        self.theta = 0.5 * math.log((1 - q) / q)
        self.sum, self.squares = terms.sum(1), _dot(terms, terms)

    def at(self, t: Floats) -> tuple[Floats, Floats]:
        """Compute it at t [m], rounded upwards, and its slope there, not a number where a product overflows: [m] each."""
        m, n = self.terms.shape
        total, slope = np.empty(m), np.empty(m)
        tile = max(1, TILE // n)
        scratch = np.empty((2, tile, n))
        for first in range(0, m, tile):
            rows = slice(first, first + tile)
            b = self.terms[rows]
            x, factors = scratch[:, : len(b)]
            np.multiply(b, 2 * t[rows, None], out=x)
            x -= 2 * self.theta
            _exp(x)
            np.add(x, 1, out=factors)
            with np.errstate(invalid="ignore"):
                x /= factors
            slope[rows] = 2 * _dot(b, x) - self.sum[rows]
            total[rows] = _log_of_product(factors)
        large = ~np.isfinite(total)
        if large.any():  # then with ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|), which takes more passes
            x = self.terms[large] * (2 * t[large, None]) - 2 * self.theta
            total[large] = np.maximum(x, 0).sum(1) + _log_of_product(1 + _exp(-np.abs(x)))
            slope[large] = np.nan
        constant = n * math.log1p(-self.q)
        magnitude = n - constant + total + np.sqrt(n * self.squares) * t
        return constant - t * self.sum + total + _ROUNDING * magnitude, slope

    def slope(self, t: Floats) -> tuple[Floats, Floats]:
        """Compute its derivatives at t [m]."""
        h = self.terms * t[:, None]
        h -= self.theta
        np.tanh(h, out=h)
        first = _dot(self.terms, h)
        h *= self.terms
        return first, self.squares - _dot(h, h)


def rival_log_bounds(alpha: Floats, starts: Ints, q: float) -> Floats:
    """Bound, for every rival d of the leader c, ln P(S'_c <= S'_d) of the scores S' under noise.

    The rival's terms are z_i = alpha_i (1[y'_i = c] - 1[y'_i = d]). Each test point's largest bound is sought with a t
    of its own; the other rivals get the bound at that same t, which is valid and below, and so does not matter.

    Args:
        alpha: [m, n], columns in order of their labels.
        starts: [K + 1], class c has the columns starts[c] to starts[c+1], at least one.
        q: noise rate in (0, (K-1)/K).

    Returns:
        [m, K], at most 0; -inf for the leader itself (the largest score, of several the first).
    """
    m, n = alpha.shape
    scores = np.add.reduceat(alpha, starts[:-1], axis=1)
    leader = scores.argmax(1)
    result = np.empty_like(scores)
    tile = max(1, TILE // n)
    for c in np.unique(leader):
        members = np.flatnonzero(leader == c)
        for first in range(0, len(members), tile):
            rows = members[first : first + tile]
            result[rows] = _Rivals(alpha[rows], starts, scores[rows], int(c), q).bounds()
    return result


class _Rivals:
    """Test points with the same leader c, against all rivals.

    A term's moment generating function is P e^s + R + Q e^-s with s = t|alpha_i| and coefficients that depend on the
    label's part in the comparison (the leader's, the rival's, another) and on the sign of alpha_i.
    """

    def __init__(self, alpha: Floats, starts: Ints, scores: Floats, leader: int, q: float) -> None:
        self.starts, self.leader = starts, leader
        self.columns = [slice(int(a), int(b)) for a, b in zip(starts[:-1], starts[1:], strict=True)]
        keep, self.other = 1 - q, q / (len(starts) - 2)
        self.size, self.both = np.abs(alpha), keep + self.other
        drift = keep - self.other
        # P of labels that take part; Q is both - P. A small P must be exact, since P alone remains where s is large.
        self.grow = np.copysign(0.5, alpha)
        self.grow[:, self.columns[leader]] *= -1
        self.grow += 0.5
        self.grow *= drift
        self.grow += self.other
        self.mean = drift * (scores[:, leader : leader + 1] - scores)
        squares = np.add.reduceat(self.size * self.size, starts[:-1], axis=1)
        inside = squares + squares[:, leader : leader + 1]
        outside = squares.sum(1, keepdims=True) - inside
        self.variance = (self.both - drift * drift) * inside + 2 * self.other * outside

    def bounds(self) -> Floats:
        """Compute [m, K]: refine the rival with the largest bound until no other one is above it."""
        m, classes = self.mean.shape
        # An estimate, only to begin with.
        bounds: Floats = -self.mean * self.mean / (2 * np.maximum(self.variance, np.finfo(np.float64).tiny))
        bounds[:, self.leader] = -np.inf
        refined = np.zeros((m, classes), dtype=bool)
        rows = np.arange(m)
        for turn in range(classes - 1):
            rival = bounds[rows].argmax(1)
            values = self.refine(rows, rival)
            bounds[rows] = values if turn == 0 else np.minimum(bounds[rows], values)
            refined[rows, rival] = True
            rows = np.flatnonzero(~refined[np.arange(m), bounds.argmax(1)])
            if not len(rows):
                break
        return bounds

    def refine(self, rows: Ints, rival: Ints) -> Floats:
        """Choose t for one rival of each row; returns the bounds of all rivals at that t, [len(rows), K]."""
        mean, variance = self.mean[rows, rival], self.variance[rows, rival]
        stride = self.size.shape[1] // _SAMPLE
        if stride < 2:
            return self.at(_newton(self.pair(rows, rival, slice(None)), mean, variance), rows)
        t, _ = _from_sample(self.pair(rows, rival, slice(None, None, stride)), mean, variance)
        return self.at(_newton(self.pair(rows, rival, slice(None)), mean, variance, t), rows)

    def pair(self, rows: Ints, rival: Ints, some: slice) -> _Pair:
        """The exponent of one rival of each row, of some of the columns."""
        size = _take(self.size, rows)
        grow = np.full_like(size, self.other)
        both = np.full_like(size, 2 * self.other)
        own = self.columns[self.leader]
        grow[:, own], both[:, own] = self.grow[rows, own], self.both
        for d in np.unique(rival):
            where, columns = np.flatnonzero(rival == d), self.columns[d]
            grow[where, columns], both[where, columns] = self.grow[rows[where], columns], self.both
        return _Pair(*(np.ascontiguousarray(values[:, some]) for values in (size, grow, both)))

    def at(self, t: Floats, rows: Ints) -> Floats:
        """Compute the bounds of all rivals at one t a row, [len(rows), K]."""
        starts = self.starts[:-1]
        s = t[:, None] * _take(self.size, rows)
        total = s.sum(1, keepdims=True)
        v = _exp(-s)
        neither = np.add.reduceat(np.log(self.other + v * ((1 - 2 * self.other) + self.other * v)), starts, axis=1)
        grow = _take(self.grow, rows)
        part = np.add.reduceat(np.log(grow + v * ((1 - self.both) + (self.both - grow) * v)), starts, axis=1)
        others = neither.sum(1, keepdims=True) - neither - neither[:, self.leader : self.leader + 1]
        values = total + others + part + part[:, self.leader : self.leader + 1]
        rounding = _ROUNDING * (2 * total - 2 * neither.sum(1, keepdims=True) + s.shape[1])
        bounds: Floats = np.minimum(values + rounding, 0.0)
        bounds[:, self.leader] = -np.inf
        return bounds


class _Pair:
    """The exponent of one comparison: terms with ln E = ln(P e^s + R + Q e^-s), s = t size, P = grow, P + Q = both."""

    def __init__(self, size: Floats, grow: Floats, both: Floats) -> None:
        self.size, self.grow = size, grow
        self.shrink, self.middle = both - grow, 1 - both

    def slope(self, t: Floats) -> tuple[Floats, Floats]:
        v = _exp(-t[:, None] * self.size)
        down = v * v
        down *= self.shrink
        even, odd = self.grow + down, self.grow - down
        v *= self.middle
        v += even
        np.divide(self.size, v, out=v)
        odd *= v
        even *= v
        return odd.sum(1), _dot(even, self.size) - _dot(odd, odd)


class _Corrected:
    """A sample's exponent, scaled and shifted to have slope -mean and curvature `variance` at t = 0."""

    def __init__(self, sample: _Exponent, mean: Floats, variance: Floats) -> None:
        self.sample, self.mean = sample, mean
        self.start, curvature = sample.slope(np.zeros_like(mean))
        self.scale = variance / np.where(curvature > 0, curvature, 1.0)

    def slope(self, t: Floats) -> tuple[Floats, Floats]:
        first, second = self.sample.slope(t)
        return self.scale * (first - self.start) - self.mean, self.scale * second


def _from_sample(sample: _Exponent, mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """Choose t by a sample of the terms; returns it and the curvature that the sample foretells there, [m] each."""
    corrected = _Corrected(sample, mean, variance)
    t = _newton(corrected, mean, variance)
    return t, corrected.slope(t)[1]


def _newton(exponent: _Exponent, mean: Floats, variance: Floats, start: Floats | None = None) -> Floats:
    """Find about the minimum over t >= 0 of each row's exponent: convex, with slope -mean and curvature variance at 0.

    Newton's method, safeguarded by a bracket; t = 0 where the exponent does not fall at 0.
    """
    live = (mean > 0) & (variance > 0)
    t = np.where(live, mean / np.where(live, variance, 1.0), 0.0) if start is None else start
    low, high = np.zeros_like(t), np.full_like(t, np.inf)
    open_rows = live
    for _ in range(_STEPS):
        first, second = exponent.slope(t)
        second = np.maximum(second, 1e-200)
        low = np.where(first < 0, t, low)
        high = np.where(first >= 0, t, high)
        step = t - first / second
        inside = (step > low) & (step < high) & (step <= 4 * t)
        fallback = np.where(np.isfinite(high), 0.5 * (low + high), 2 * t)
        # What the step gains in the quadratic model, against the depth of a quadratic with this minimum.
        settled = first * first / (2 * second) <= _TOLERANCE * 0.5 * t * mean
        # A row that has settled stays as it is: no result depends on the rows beside it.
        t = np.where(open_rows, np.where(inside, step, fallback), t)
        open_rows = open_rows & ~settled
        if not open_rows.any():
            break
    return t


def _exp(values: Floats) -> Floats:
    """Exponentiate in place; torch takes half of NumPy's time."""
    torch.from_numpy(values).exp_()
    return values


def _log_of_product(factors: Floats) -> Floats:
    """Sum the logarithms of factors [m, n], each at least 1: logarithms are dear, so 16 or so share one.

    Infinite where a product overflows.
    """
    with np.errstate(over="ignore"):
        for _ in range(4):
            half = factors.shape[1] // 2
            if half < 32:
                break
            product = factors[:, :half] * factors[:, half : 2 * half]
            if factors.shape[1] % 2:
                product[:, 0] *= factors[:, -1]
            factors = product
    total: Floats = np.log(factors).sum(1)
    return total


def _take(values: Floats, rows: Ints) -> Floats:
    """Rows that rise without a gap from 0 to the last are all of them, and need no copy."""
    return values if len(rows) == len(values) else values[rows]


def _dot(a: Floats, b: Floats) -> Floats:
    dot: Floats = np.einsum("ij,ij->i", a, b)
    return dot
