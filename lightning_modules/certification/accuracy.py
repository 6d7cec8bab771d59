"""Certified accuracy against radius, and what else a table of certificates is summed up by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lightning_modules.errors import InputError


def certified_accuracy(
    predictions: np.ndarray, radii: np.ndarray, labels: np.ndarray, at: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Compute the share of examples with the right class and a certified radius of at least r, for each r.

    Abstentions and examples that were skipped because their guess was wrong count as not certified.

    Args:
        predictions: [n] classes, -1 for an abstention.
        radii: [n] certified radii, NaN where there is none.
        labels: [n].
        at: R radii.

    Returns:
        [R] shares.
    """
    right = np.asarray(predictions) == np.asarray(labels)
    reached = np.asarray(radii, dtype=np.float64)[:, None] >= np.asarray(at, dtype=np.float64)
    shares: np.ndarray = (right[:, None] & reached).mean(0)
    return shares


def average_certified_radius(predictions: np.ndarray, radii: np.ndarray, labels: np.ndarray) -> float:
    """Compute the mean of radius times [right class]: the area under the curve of certified accuracy.

    Source: Zhai et al., "MACER: Attack-free and Scalable Robust Training via Maximizing Certified Radius", ICLR 2020,
    arXiv 2001.02378.
    """
    right = np.asarray(predictions) == np.asarray(labels)
    return float(np.where(right, np.asarray(radii, dtype=np.float64), 0.0).mean())


def high_probability_accuracy(accuracy: float, n: int, alpha: float, rho: float = 0.001) -> float:
    """Compute a lower bound on the true certified accuracy that holds with probability 1 - rho.

    Each example's certificate errs with probability alpha, independently: not under shared noise.

    Args:
        accuracy: certified accuracy measured on n examples.
        n: number of examples.
        alpha: of the certificates.
        rho: chance that this bound is too high.

    Raises:
        InputError: for values out of range.

    Source: Cohen et al., ICML 2019, appendix, by Bernstein's inequality.
    """
    if n < 1 or not 0 < alpha < 1 or not 0 < rho < 1:
        raise InputError("n, alpha, rho: give n of 1 or more, and alpha and rho between 0 and 1")
    spread = math.log(1 / rho)
    return accuracy - alpha - math.sqrt(alpha * (1 - alpha) * spread / n) - spread / (3 * n)
