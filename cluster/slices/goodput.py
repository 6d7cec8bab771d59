"""How much of the time computes, when interruptions come and slices are away."""

from __future__ import annotations

import math

import numpy as np

from cluster.errors import InputError

_HOUR = 3600.0


def goodput(per_hour: float, lost: float, recovery: float = 0.0, throughput: float = 0.0) -> float:
    """The share of an hour's full computation that is done: 1 - lambda (t_lost + (1 - q) t_recover) / 3600.

    Interruptions are taken not to overlap; where they would fill the hour the result is 0.

    Args:
        per_hour: lambda, interruptions an hour.
        lost: seconds in which nothing is computed, an interruption.
        recovery: seconds of computing with fewer slices, an interruption.
        throughput: q, share of the full speed meanwhile.

    Raises:
        InputError: a negative number, a throughput above 1.

    Source: derived (renewal argument); the Gemini 2.5 report (arXiv 2507.06261, section 2.4) states the quantities.

    Example:
        >>> round(goodput(3, 30, 600, 0.97), 2)
        0.96
    """
    _check(per_hour, lost, recovery, throughput)
    return max(0.0, 1 - per_hour * (lost + (1 - throughput) * recovery) / _HOUR)


def simulated_goodput(
    per_hour: float, lost: float, recovery: float, throughput: float, hours: float, seed: int
) -> float:
    """`goodput` by simulation: interruptions come at exponential intervals of full-speed time.

    An interruption takes its seconds off the clock and the next one is counted from its end. With that meaning lambda
    counts interruptions per hour of the clock, so the intervals between an end and the next beginning have the mean
    3600 / lambda - lost - recovery.

    Raises:
        InputError: as `goodput`; interruptions that would fill the hour.
    """
    _check(per_hour, lost, recovery, throughput)
    if hours <= 0:
        raise InputError(f"hours: is {hours}; give more than 0")
    if per_hour == 0:
        return 1.0
    mean_gap = _HOUR / per_hour - lost - recovery
    if mean_gap <= 0:
        raise InputError(f"per_hour: {per_hour} interruptions of {lost + recovery:g} s fill the hour; give fewer")
    generator = np.random.default_rng(seed)
    count = math.ceil(hours * per_hour)
    gaps = generator.exponential(mean_gap, count)
    clock = gaps.sum() + count * (lost + recovery)
    return float((gaps.sum() + count * throughput * recovery) / clock)


def _check(per_hour: float, lost: float, recovery: float, throughput: float) -> None:
    for name, value in {"per_hour": per_hour, "lost": lost, "recovery": recovery}.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name}: is {value}; give 0 or more")
    if not 0 <= throughput <= 1:
        raise InputError(f"throughput: is {throughput}; give 0 to 1")
