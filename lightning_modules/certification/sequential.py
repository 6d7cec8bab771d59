"""Sampling that stops when the answer is decided, and stays valid at level alpha.

A certificate on a grid of target radii needs no estimate of p_A, only to know which targets it lies above. The count of
successes is looked at on a fixed schedule; a target counts as crossed once the count reaches an integer threshold at any
look. Why that is valid: let t be the first target with p_A < p_t; the certificate is wrong only if t is crossed, and the
chance of that is at most
- "cp": the sum over looks of P_{p_t}(count >= threshold) <= sum of alpha_j = alpha (union bound);
- "eprocess": P(sup_n M_n >= 1/alpha_early) <= alpha_early for a nonnegative supermartingale M with M_0 = 1 (Ville's
  inequality), plus the level of the last look.
It holds whatever makes the sampling stop, so stopping early because nothing more can be gained is free. There is no
correction over targets, because they are crossed in order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import special

from lightning_modules.certification.binomial import binomial_tail, clopper_pearson_upper
from lightning_modules.errors import InputError

Kind = Literal["cp", "eprocess"]

_PRIOR = (0.5, 0.5)
"""Beta mixture of the e-process; any that is fixed before the samples keeps it valid."""


@dataclass(frozen=True)
class LookSchedule:
    """When the count is looked at: `start` samples, then `ratio` times as many, in multiples of `step`, up to `n_max`.

    Args:
        n_max: most samples.
        start: samples at the first look.
        ratio: of the numbers at successive looks, above 1.
        step: looks before the last are at multiples of it.

    Raises:
        InputError: for values out of range.
    """

    n_max: int
    start: int = 100
    ratio: float = 1.1
    step: int = 16

    def __post_init__(self) -> None:
        if self.n_max < 1 or self.start < 1 or self.step < 1:
            raise InputError("looks: n_max, start and step must be 1 or more")
        if not 1 < self.ratio < math.inf:
            raise InputError(f"looks: ratio is {self.ratio}; give more than 1, e.g. 1.1")

    @property
    def looks(self) -> np.ndarray:
        """Numbers of samples at the looks, [J] int64, increasing; the last is `n_max`."""
        found = []
        n = math.ceil(self.start / self.step) * self.step
        while n < self.n_max:
            found.append(n)
            n = max(n + self.step, math.ceil(n * self.ratio / self.step - 1e-9) * self.step)
        return np.array([*found, self.n_max], dtype=np.int64)


@dataclass(frozen=True)
class SequentialRule:
    """Certify on a grid of radii with as few samples as the answer needs.

    Args:
        sigma: standard deviation of the noise.
        radii: targets, increasing from 0, in the inputs' units; the certificate is one of them.
        schedule: when to look.
        alpha: probability of a wrong certificate, at most.
        split: share of alpha spent before the last look.
        futility: sampling ends when even a success rate at the upper confidence bound of this level would not cross
            the next target by the last look; costs no alpha.
        kind: "cp" tests every look by itself, the early ones at equal levels; "eprocess" is a betting martingale that
            may be looked at whenever it suits.

    Raises:
        InputError: for values out of range.

    Source: union over Clopper-Pearson looks after Horvath et al., "Boosting Randomized Smoothing with Variance Reduced
    Classifiers", ICLR 2022, and Voracek, "Treatment of Statistical Estimation Problems in Randomized Smoothing",
    NeurIPS 2024; the grid of targets and the futility rule are ours.
    """

    sigma: float
    radii: tuple[float, ...]
    schedule: LookSchedule
    alpha: float = 0.001
    split: float = 0.5
    futility: float = 0.01
    kind: Kind = "cp"

    def __post_init__(self) -> None:
        check_sigma(self.sigma)
        check_alpha(self.alpha)
        if (
            not self.radii
            or self.radii[0] != 0
            or any(b <= a for a, b in zip(self.radii, self.radii[1:], strict=False))
        ):
            raise InputError(f"radii: {list(self.radii)} must increase from 0, e.g. 0 0.25 0.5")
        if not all(map(math.isfinite, self.radii)):
            raise InputError("radii: must be finite")
        for name in ("split", "futility"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is not between 0 and 1; give e.g. 0.5")
        if self.kind not in ("cp", "eprocess"):
            raise InputError(f"kind: unknown {self.kind!r}; choose cp or eprocess")

    @property
    def looks(self) -> np.ndarray:
        """Numbers of samples at the looks, [J]."""
        return self.schedule.looks

    @property
    def targets(self) -> np.ndarray:
        """Probabilities p_t = Phi(r_t / sigma) that certify the radii, [T]."""
        probabilities: np.ndarray = special.ndtr(np.array(self.radii) / self.sigma)
        return probabilities

    @property
    def thresholds(self) -> np.ndarray:
        """Smallest counts that cross a target, [T, J] int64; n_j + 1 where not even n_j of n_j would."""
        return sequential_thresholds(self)

    def look(self, j: int, counts: np.ndarray, crossed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look at the counts of several examples after n_j samples each.

        Args:
            j: number of the look.
            counts: [A] successes so far.
            crossed: [A] targets crossed before (0: none).

        Returns:
            crossed [A], and stop [A] bool: decided, hopeless or at the end.
        """
        thresholds, looks, last = self.thresholds, self.looks, len(self.looks) - 1
        crossed = np.maximum(crossed, (thresholds[:, j] <= counts[:, None]).sum(1))
        stop = crossed == len(self.radii)
        if j == last:
            return crossed, np.ones_like(stop)
        following = thresholds[np.minimum(crossed, len(self.radii) - 1), last]
        needed = (following - counts) / (looks[last] - looks[j])
        return crossed, stop | (needed > clopper_pearson_upper(counts, looks[j], self.futility))

    def replay(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Follow the rule on paths that are known whole.

        Args:
            counts: [A, J] successes at every look.

        Returns:
            Targets crossed [A], and samples used [A].
        """
        crossed, used = np.zeros(len(counts), dtype=np.int64), np.zeros(len(counts), dtype=np.int64)
        active = np.arange(len(counts))
        for j, n in enumerate(self.looks):
            crossed[active], stop = self.look(j, counts[active, j], crossed[active])
            used[active] = n
            active = active[~stop]
        return crossed, used

    def outcome(self, crossed: int) -> tuple[float, float]:
        """Return the certified radius and the lower bound on p_A that it stands for; (0, 0) where nothing is crossed."""
        if crossed == 0:
            return 0.0, 0.0
        return float(self.radii[crossed - 1]), float(self.targets[crossed - 1])


@lru_cache(maxsize=64)
def sequential_thresholds(rule: SequentialRule) -> np.ndarray:
    """Compute a rule's thresholds [T, J], once a process."""
    looks, targets = rule.looks, rule.targets[:, None]
    early, final = rule.split * rule.alpha, (1 - rule.split) * rule.alpha
    if len(looks) == 1:  # the only look may spend all
        return _cp_thresholds(looks, targets, np.array([rule.alpha]))
    if rule.kind == "cp":
        levels = np.full(len(looks), early / (len(looks) - 1))
        levels[-1] = final
        return _cp_thresholds(looks, targets, levels)
    found = _smallest(lambda k: log_e_value(k, looks - k, targets) >= -math.log(early), targets, looks)
    found[:, -1:] = _cp_thresholds(looks[-1:], targets, np.array([final]))
    return found


def _cp_thresholds(looks: np.ndarray, targets: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Find the smallest k with a lower bound at or above the target: that is P_target(Bin(n) >= k) <= level."""
    return _smallest(lambda k: binomial_tail(k, looks, targets) <= levels, targets, looks)


def _smallest(enough: object, targets: np.ndarray, looks: np.ndarray) -> np.ndarray:
    """Bisect for the smallest counts [T, J] that are enough; n + 1 where none is. More successes never hurt."""
    assert callable(enough)
    low = np.floor(targets * looks).astype(np.int64)  # at the target itself nothing is proved
    high = np.broadcast_to(looks + 1, low.shape).copy()
    while (high - low > 1).any():
        middle = (low + high) // 2
        good = enough(middle)
        low, high = np.where(good, low, middle), np.where(good, middle, high)
    return high


def log_e_value(
    successes: np.ndarray, failures: np.ndarray, p0: np.ndarray | float, prior: tuple[float, float] = _PRIOR
) -> np.ndarray:
    """Compute ln M of the mixture e-process against p <= p0: the likelihood ratio of theta > p0, averaged over a prior.

    M = integral over theta > p0 of (theta/p0)^S ((1-theta)/(1-p0))^F under Beta(a, b) restricted to theta > p0. For
    every such theta and p <= p0 one step has mean p theta/p0 + (1-p)(1-theta)/(1-p0) <= 1, so M is a nonnegative
    supermartingale.

    Args:
        successes: S so far.
        failures: F so far.
        p0: the probability tested.
        prior: (a, b).

    Returns:
        ln M, broadcast.
    """
    a, b = prior
    s, f = np.asarray(successes, dtype=np.float64), np.asarray(failures, dtype=np.float64)
    with np.errstate(divide="ignore"):  # far below p0 the mixture's mass vanishes: ln M = -inf
        mixture = special.betaln(s + a, f + b) + np.log(special.betaincc(s + a, f + b, p0))
    prior_mass = special.betaln(a, b) + np.log(special.betaincc(a, b, p0))
    log_m: np.ndarray = mixture - prior_mass - special.xlogy(s, p0) - special.xlog1py(f, -np.asarray(p0))
    return log_m


def check_sigma(sigma: float) -> None:
    """Raise InputError unless sigma is positive and finite."""
    if not 0 < sigma < math.inf:
        raise InputError(f"sigma: {sigma} is not positive; give the noise's standard deviation, e.g. 0.25")


def check_alpha(alpha: float) -> None:
    """Raise InputError unless 0 < alpha < 1."""
    if not 0 < alpha < 1:
        raise InputError(f"alpha: {alpha} is not between 0 and 1; give the chance of a wrong certificate, e.g. 0.001")
