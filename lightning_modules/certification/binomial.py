"""Exact binomial statistics behind certificates: confidence bounds, the test of PREDICT, radii."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special, stats


def clopper_pearson_lower(count: Any, n: Any, alpha: Any) -> np.ndarray:
    """Compute the one-sided exact lower confidence bound on a success probability.

    P(bound > p) <= alpha for every p. The bound is the alpha quantile of Beta(k, n - k + 1), 0 for k = 0. A two-sided
    interval of a library must be asked for level 2 alpha to give the same bound.

    Args:
        count: successes k, broadcast with the others.
        n: trials.
        alpha: level of the bound.

    Returns:
        Lower bounds, float64.

    Source: Clopper & Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
    Biometrika 1934.
    """
    k, n = np.asarray(count, dtype=np.float64), np.asarray(n, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(k > 0, special.betaincinv(np.maximum(k, 1), n - np.maximum(k, 1) + 1, alpha), 0.0)


def clopper_pearson_upper(count: Any, n: Any, alpha: Any) -> np.ndarray:
    """Compute the one-sided exact upper confidence bound: P(bound < p) <= alpha for every p; 1 for k = n."""
    k, n = np.asarray(count, dtype=np.float64), np.asarray(n, dtype=np.float64)
    return np.where(k < n, special.betainccinv(k + 1, np.maximum(n - k, 1), alpha), 1.0)


def binomial_tail(count: Any, n: Any, p: Any) -> np.ndarray:
    """Compute P(Bin(n, p) >= k), accurate in the far tail; 1 for k <= 0 and 0 for k > n."""
    k, n = np.asarray(count, dtype=np.float64), np.asarray(n, dtype=np.float64)
    inside = special.betainc(np.clip(k, 1, n), n - np.clip(k, 1, n) + 1, p)
    return np.where(k <= 0, 1.0, np.where(k > n, 0.0, inside))


def top_two_p_value(first: Any, second: Any) -> np.ndarray:
    """Compute the two-sided exact p-value that the two largest counts are of equally likely classes.

    Two-sided on purpose: which class leads was seen in the same data.

    Args:
        first: count of the leading class.
        second: count of the runner-up, at most `first`.

    Source: PREDICT of Cohen, Rosenfeld & Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019,
    arXiv 1902.02918; the test is from Hung & Fithian, "Rank verification for exponential families", 2019.
    """
    first, total = np.asarray(first), np.asarray(first) + np.asarray(second)
    # The law under 1/2 is symmetric, so both tails together are twice one of them.
    p_value: np.ndarray = np.minimum(1.0, 2 * stats.binom.sf(first - 1, total, 0.5))
    return p_value


def radius_of(probability: Any, sigma: float) -> np.ndarray:
    """Compute the certified l2 radius sigma * Phi^-1(p) of a lower bound p on the top class's probability.

    Args:
        probability: lower bounds; below 1/2 nothing is certified and the radius is 0.
        sigma: standard deviation of the noise, in the inputs' units, as is the radius.

    Source: Cohen et al., ICML 2019, theorem 1 with pB = 1 - pA.
    """
    radius: np.ndarray = sigma * special.ndtri(np.maximum(probability, 0.5))
    return radius


def largest_radius(n: int, alpha: float, sigma: float) -> float:
    """Compute the radius when all n noisy copies agree: no certificate from n samples can be larger."""
    return float(radius_of(alpha ** (1 / n), sigma))
