"""What a small error about the cost does to a classifier that is exact for the cost believed in: two closed forms."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import norm

from lightning_modules.errors import InputError
from lightning_modules.strategic.costs import Array
from lightning_modules.strategic.worst_case import zero_one_risks


def two_point_minimax(epsilon: float, gap: float) -> float:
    """Smallest worst-case 0-1 error over budgets 1 and 1 + epsilon, for x = gap with y = +1 and x = -gap with y = -1.

    In one dimension a classifier accepts x >= theta (or x <= theta), and a budget u moves the threshold by u. Both labels are right
    at budget u where theta lies in (u - gap, u + gap]; if the two intervals do not meet, 2 gap <= epsilon, nothing is right for
    both, and every classifier has error one half or more under one of them.

    Args:
        epsilon: how much larger the true budget may be.
        gap: half the distance of the two points.

    Returns:
        The error, found by trying a threshold between any two places where something changes.

    Raises:
        InputError: for numbers that are not above 0.

    Source: the paper proves this for general costs, as remembered; this example is derived.
    """
    if not (epsilon > 0 and gap > 0):
        raise InputError(f"epsilon: {epsilon} and gap: {gap}; give numbers above 0")
    points, y = np.array([gap, -gap]), np.array([1, -1])
    worst = [0.5]  # accepting everybody
    for direction in (1.0, -1.0):
        edges = np.unique(np.concatenate([direction * points + u for u in (1.0, 1.0 + epsilon)]))
        for theta in np.concatenate([edges, (edges[1:] + edges[:-1]) / 2, [edges[0] - 1, edges[-1] + 1]]):
            scores = direction * points - theta
            worst.append(float(zero_one_risks(scores, y, np.array([1.0, 1.0 + epsilon])).max()))
    return min(worst)


def gaussian_error(epsilon: float, mean: float = 0.5) -> float:
    """Error, at the true cost (1 - epsilon) I, of the classifier that is best for the cost I.

    x given y is N(y mean e1, I), classes are balanced, u = 1. Best for I: w = e1, b = -1, since everybody within 1 moves. People
    then move 1 / sqrt(1 - epsilon), that is D = 1 / sqrt(1 - epsilon) - 1 further than foreseen.

    Args:
        epsilon: in [0, 1).
        mean: above 0.

    Raises:
        InputError: for epsilon outside [0, 1).

    Source: derived: (Phi(-(mean + D)) + Phi(-(mean - D))) / 2.
    """
    if not 0 <= epsilon < 1:
        raise InputError(f"epsilon: {epsilon} is not in [0, 1)")
    further = 1 / math.sqrt(1 - epsilon) - 1
    return float((norm.cdf(-(mean + further)) + norm.cdf(-(mean - further))) / 2)


def gaussian_sample(count: int, mean: float, seed: int, width: int = 2) -> tuple[Array, Array]:
    """Draw x [count, width] and y [count] of `gaussian_error`."""
    generator = np.random.default_rng([seed, 51])
    y = np.where(np.arange(count) % 2 == 0, 1.0, -1.0)
    x = generator.standard_normal((count, width))
    x[:, 0] += mean * y
    return x, y
