"""Feature maps of the second stage, and their means under a shift of the inputs by a sample."""

from __future__ import annotations

import itertools
import math
from typing import Protocol

import numpy as np

from lightning_modules.causal.rep4ex.checks import Array


class FeatureMap(Protocol):
    """Maps inputs [n, d] to features [n, m], without a constant among them."""

    def __call__(self, z: Array) -> Array:
        """Features [n, m]."""

    def shifted_mean(self, centres: Array, v: Array) -> Array:
        """Mean over rows i of the features of centres + v_i: [q, m] of centres [q, d] and v [n, d]."""


class FourierFeatures:
    """[z, sqrt(2 / m) cos(z . w_j + b_j)], w_j from N(0, I / bandwidth^2).

    Because cos(s + t) = cos s cos t - sin s sin t, the mean over n shifts at q centres costs (n + q) m instead of n q m (derived here).

    Args:
        dim: d.
        count: m.
        bandwidth: of the Gaussian kernel that they stand for.
        seed: of w and b.
    """

    def __init__(self, dim: int, count: int, bandwidth: float, seed: int) -> None:
        generator = np.random.default_rng([seed, 81])
        self._w = generator.standard_normal((dim, count)) / bandwidth
        self._b = generator.uniform(0, 2 * math.pi, count)
        self._scale = math.sqrt(2 / count)

    def __call__(self, z: Array) -> Array:
        """Features [n, d + m]."""
        return np.concatenate([z, self._scale * np.cos(z @ self._w + self._b)], 1)

    def shifted_mean(self, centres: Array, v: Array) -> Array:
        """See `FeatureMap`."""
        turns, angles = v @ self._w, centres @ self._w + self._b
        waves = np.cos(angles) * np.cos(turns).mean(0) - np.sin(angles) * np.sin(turns).mean(0)
        return np.concatenate([centres + v.mean(0), self._scale * waves], 1)


class Monomials:
    """All monomials of degree 1 to `degree`, mixed ones too: a space that affine maps of z map onto itself.

    Args:
        dim: d.
        degree: of the largest.
    """

    def __init__(self, dim: int, degree: int) -> None:
        degrees = range(1, degree + 1)
        self._terms = [t for g in degrees for t in itertools.combinations_with_replacement(range(dim), g)]

    def __call__(self, z: Array) -> Array:
        """Features [n, m], those of degree 1 first."""
        return np.stack([z[:, list(term)].prod(1) for term in self._terms], 1)

    def shifted_mean(self, centres: Array, v: Array) -> Array:
        """See `FeatureMap`."""
        return np.stack([self(centre + v).mean(0) for centre in centres])
