"""Names that the parts of this paper share."""

from __future__ import annotations

from cluster.trial import Trial, derive_seed

NAME = "randomized_smoothing"
DIGITS, LINEAR = f"{NAME}/digits", f"{NAME}/linear"
REPLAY, LEVEL, TARGET = f"{NAME}/replay", f"{NAME}/level", f"{NAME}/single_target"
CIFAR, IMAGENET = f"{NAME}/cifar10", f"{NAME}/imagenet"
"""Experiments."""

NOISE, CLEAN, CONSISTENCY, SMOOTHADV, MACER = "noise", "no noise", "consistency", "SmoothAdv", "MACER"
DENOISED = "denoised"
"""Ways to train on digits."""

ALPHA = 0.001
RATIOS = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Radii of the digits' tables in multiples of sigma."""


def example_seeds(trial: Trial, name: str, count: int) -> list[int]:
    """Derive a seed for each example of one of a cell's experiments."""
    return [derive_seed(trial.trial_id, name, i) for i in range(count)]
