"""Sets of possible costs. What a classifier suffers depends on a cost through one number, the shift k, so a set is an interval."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.strategic.costs import Array, Cost, LpCost, MahalanobisCost


class CostSet(ABC):
    """Costs of which one is the true one."""

    @abstractmethod
    def extreme_costs(self, w: Array) -> tuple[Cost, Cost]:
        """The costliest and the cheapest for weights w [d]: those with the smallest and the largest shift."""

    @abstractmethod
    def grid(self, count: int) -> list[Cost]:
        """So many members, the extremes among them."""

    @abstractmethod
    def contains(self, cost: Cost) -> bool:
        """Whether a cost is in the set, to rounding."""

    def shift_interval(self, w: Array) -> tuple[float, float]:
        """Smallest and largest shift over the set."""
        costliest, cheapest = self.extreme_costs(w)
        return float(costliest.shift(w)), float(cheapest.shift(w))

    def nominal(self) -> Cost:
        """What one would believe in without the set: the middle of its grid; of a list the first."""
        return self.grid(3)[1]

    def training_costs(self) -> list[Cost]:
        """Costs that are enough for the worst hinge risk, which is attained at an extreme (derived: convex in k)."""
        return self.grid(2)


@dataclass(frozen=True, eq=False)
class FiniteCostSet(CostSet):
    """A list of costs.

    Args:
        costs: one or more.

    Raises:
        InputError: an empty list.
    """

    costs: Sequence[Cost]

    def __post_init__(self) -> None:
        if not self.costs:
            raise InputError("costs: is empty; give one or more")

    def extreme_costs(self, w: Array) -> tuple[Cost, Cost]:
        """See `CostSet`; which these are depends on w."""
        shifts = [float(cost.shift(w)) for cost in self.costs]
        return self.costs[int(np.argmin(shifts))], self.costs[int(np.argmax(shifts))]

    def grid(self, count: int) -> list[Cost]:
        """All of them, whatever `count`."""
        return list(self.costs)

    def contains(self, cost: Cost) -> bool:
        """See `CostSet`."""
        return any(_same(cost, own) for own in self.costs)

    def nominal(self) -> Cost:
        """See `CostSet`."""
        return self.costs[0]

    def shifts(self, w: Array) -> Array:
        """Every cost's shift."""
        return np.array([float(cost.shift(w)) for cost in self.costs])


@dataclass(frozen=True, eq=False)
class EigenvalueBox(CostSet):
    """Mahalanobis costs with common eigenvectors, each eigenvalue in an interval; the corners are extreme for every w.

    Args:
        vectors: [d, d] orthonormal columns.
        low: [d] smallest eigenvalues, above 0 (the cheapest cost); or one number for all.
        high: [d] largest, or one number.
        budget: of all.

    Raises:
        InputError: vectors that are not orthonormal, low <= 0 or low > high.
    """

    vectors: Array
    low: Array
    high: Array
    budget: float = 1.0
    _extremes: tuple[Cost, Cost] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        vectors = np.asarray(self.vectors, np.float64)
        d = len(vectors)
        if vectors.shape != (d, d) or not np.allclose(vectors.T @ vectors, np.eye(d), atol=1e-8):
            raise InputError(
                f"vectors: of shape {list(vectors.shape)} are not orthonormal; give eigenvectors as columns"
            )
        try:
            low, high = (np.broadcast_to(np.asarray(v, np.float64), (d,)).copy() for v in (self.low, self.high))
        except ValueError:
            raise InputError(f"low: and high: give {d} eigenvalues each, one a column of vectors") from None
        if not ((low > 0) & (low <= high) & np.isfinite(high)).all():
            raise InputError("low: must be above 0 and at most high, for every eigenvalue")
        for name, value in (("vectors", vectors), ("low", low), ("high", high)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_extremes", (self.member(high), self.member(low)))

    def member(self, values: Array) -> MahalanobisCost:
        """The cost with these eigenvalues [d]."""
        sigma = (self.vectors * values) @ self.vectors.T
        return MahalanobisCost((sigma + sigma.T) / 2, self.budget)

    def extreme_costs(self, w: Array) -> tuple[Cost, Cost]:
        """See `CostSet`."""
        return self._extremes

    def grid(self, count: int) -> list[Cost]:
        """Members between the corners, evenly in the logarithm of the eigenvalues."""
        return [self.member(self.high ** (1 - t) * self.low**t) for t in _fractions(count)]

    def contains(self, cost: Cost) -> bool:
        """See `CostSet`."""
        if not isinstance(cost, MahalanobisCost) or cost.budget != self.budget:
            return False
        if cost.manipulable is not None or cost.sigma.shape != self.vectors.shape:
            return False
        turned = self.vectors.T @ cost.sigma @ self.vectors
        values = np.diag(turned)
        common = np.allclose(turned, np.diag(values), atol=1e-9 * (1 + np.abs(turned).max()))
        return bool(common and (values >= self.low - 1e-9).all() and (values <= self.high + 1e-9).all())


@dataclass(frozen=True, eq=False)
class SpectralBall(CostSet):
    """Mahalanobis costs whose matrix differs from a centre by at most a radius in spectral norm.

    Args:
        center: [d, d], symmetric and positive definite.
        radius: below the smallest eigenvalue of the centre.
        budget: of all.

    Raises:
        InputError: a radius that reaches the smallest eigenvalue, or is negative.
    """

    center: Array
    radius: float
    budget: float = 1.0
    _extremes: tuple[Cost, Cost] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        center = MahalanobisCost(self.center).sigma
        smallest = float(np.linalg.eigvalsh(center)[0])
        if not 0 <= self.radius < smallest:
            raise InputError(
                f"radius: {self.radius} is not in [0, {smallest:g}); stay below the centre's smallest eigenvalue"
            )
        object.__setattr__(self, "center", center)
        object.__setattr__(self, "_extremes", tuple(self._member(t) for t in (1.0, -1.0)))

    def _member(self, t: float) -> Cost:
        return MahalanobisCost(self.center + t * self.radius * np.eye(len(self.center)), self.budget)

    def extreme_costs(self, w: Array) -> tuple[Cost, Cost]:
        """See `CostSet`: the centre plus and minus radius I, for every w."""
        return self._extremes

    def grid(self, count: int) -> list[Cost]:
        """Members on the line between the extremes."""
        eye = np.eye(len(self.center))
        return [MahalanobisCost(self.center + self.radius * (1 - 2 * t) * eye, self.budget) for t in _fractions(count)]

    def contains(self, cost: Cost) -> bool:
        """See `CostSet`."""
        if not isinstance(cost, MahalanobisCost) or cost.budget != self.budget:
            return False
        if cost.manipulable is not None or cost.sigma.shape != self.center.shape:
            return False
        return bool(np.abs(np.linalg.eigvalsh(cost.sigma - self.center)).max() <= self.radius + 1e-9)


@dataclass(frozen=True, eq=False)
class BudgetInterval(CostSet):
    """One norm, and a budget that is known to lie in an interval.

    Args:
        cost: its norm.
        low: smallest budget, 0 or more.
        high: largest.

    Raises:
        InputError: low below 0 or above high.
    """

    cost: Cost
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high < math.inf:
            raise InputError(f"low: {self.low} and high: {self.high} are no interval of budgets; give 0 <= low <= high")

    def _member(self, budget: float) -> Cost:
        cost: Any = self.cost
        found: Cost = replace(cost, budget=budget)
        return found

    def extreme_costs(self, w: Array) -> tuple[Cost, Cost]:
        """See `CostSet`."""
        return self._member(self.low), self._member(self.high)

    def grid(self, count: int) -> list[Cost]:
        """Evenly spaced budgets."""
        return [self._member(self.low + t * (self.high - self.low)) for t in _fractions(count)]

    def contains(self, cost: Cost) -> bool:
        """See `CostSet`."""
        inside = self.low - 1e-12 <= cost.budget <= self.high + 1e-12
        return inside and _same(replace(cost, budget=1.0), self._member(1.0))  # type: ignore[type-var]


def _fractions(count: int) -> Array:
    if count < 2:
        raise InputError(f"count: {count} is too few; a grid holds both extremes")
    return np.linspace(0, 1, count)


def _same(one: Cost, other: Cost) -> bool:
    if isinstance(one, MahalanobisCost) and isinstance(other, MahalanobisCost):
        alike = one.sigma.shape == other.sigma.shape and np.allclose(one.inverse, other.inverse, rtol=1e-9)
    elif isinstance(one, LpCost) and isinstance(other, LpCost):
        masks = [None if c.manipulable is None else c.manipulable.tolist() for c in (one, other)]
        alike = one.p == other.p and masks[0] == masks[1]
    else:
        return False
    return bool(alike and math.isclose(one.budget, other.budget))
