"""The split of every environment into "in" (train, or report) and "out" (select) examples, as in DomainBed."""

from __future__ import annotations

import math

import numpy as np

from lightning_modules.data.environments import Environment
from lightning_modules.errors import InputError

HOLDOUT_FRACTION = 0.2
"""DomainBed's share of "out" examples."""


def split_indices(
    n: int, seed: int, environment_index: int, holdout_fraction: float = HOLDOUT_FRACTION
) -> tuple[np.ndarray, np.ndarray]:
    """Split n examples at random; the shuffle depends on (seed, environment_index, n) alone.

    Every method and every held-out environment therefore sees the same split of a trial seed.

    Args:
        n: number of examples, at least 2.
        seed: trial seed, 0 or more.
        environment_index: position of the environment in its dataset.
        holdout_fraction: share of "out" examples, between 0 and 1, both excluded.

    Returns:
        "in" and "out" indices, int64, sorted, disjoint, together 0..n-1. "out" has floor(holdout_fraction * n)
        elements, but at least one, and leaves at least one for "in".

    Raises:
        InputError: n, seed or holdout_fraction is out of range.
    """
    if n < 2:
        raise InputError(f"environment number {environment_index}: {n} examples cannot be split; give at least 2")
    if seed < 0:
        raise InputError(f"seed: {seed} is negative; give 0 or more")
    if not 0 < holdout_fraction < 1:
        raise InputError(f"holdout_fraction: {holdout_fraction} is not between 0 and 1; 0.2 is usual")
    generator = np.random.default_rng(np.random.SeedSequence([seed, environment_index, n]))
    order = generator.permutation(n).astype(np.int64)
    # 0.29 * 100 is 28.999999999999996: floor what was meant, not what floating point made of it.
    count = min(max(math.floor(round(holdout_fraction * n, 9)), 1), n - 1)
    return np.sort(order[count:]), np.sort(order[:count])


def split_environment(
    environment: Environment, seed: int, index: int, holdout_fraction: float = HOLDOUT_FRACTION
) -> tuple[np.ndarray, np.ndarray]:
    """Split an environment: by its own `out` mark where the data fix the split, else by `split_indices`.

    Args:
        environment: the examples.
        seed: trial seed; without effect where the environment brings its own split.
        index: position of the environment in its dataset.
        holdout_fraction: share of "out" examples; without effect where the environment brings its own split.

    Returns:
        "in" and "out" indices, int64, sorted.

    Raises:
        InputError: see `split_indices`; the message names the environment.
    """
    if environment.out is not None:
        return np.flatnonzero(~environment.out), np.flatnonzero(environment.out)
    if len(environment) < 2:
        raise InputError(
            f"environment {environment.name!r}: {len(environment)} example cannot be split; give at least 2"
        )
    return split_indices(len(environment), seed, index, holdout_fraction)
