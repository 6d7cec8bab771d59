"""Sets of possible costs. What a classifier suffers depends on a cost through one number, the shift k, so a set is an interval."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

    def training_costs(self) -> list[Cost]:
        """Costs that are enough for the worst hinge risk, which is attained at an extreme (derived: convex in k)."""
        return self.grid(2)


@dataclass(frozen=True)
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

    def shifts(self, w: Array) -> Array:
        """Every cost's shift."""
        return np.array([float(cost.shift(w)) for cost in self.costs])


@dataclass(frozen=True)
class EigenvalueBox(CostSet):
    """Mahalanobis costs with common eigenvectors, each eigenvalue in an interval; the corners are extreme for every w.

    Args:
        vectors: [d, d] orthonormal columns.
        low: [d] smallest eigenvalues, above 0 (the cheapest cost).
        high: [d] largest.
        budget: of all.

    Raises:
        InputError: vectors that are not orthonormal, low <= 0 or low > high.
    """

    vectors: Array
    low: Array
    high: Array
    budget: float = 1.0

    def __post_init__(self) -> None:
        d = len(self.vectors)
        if not np.allclose(self.vectors.T @ self.vectors, np.eye(d), atol=1e-8):
            raise InputError("vectors: are not orthonormal; give the eigenvectors as columns")
        low, high = np.broadcast_to(self.low, d), np.broadcast_to(self.high, d)
        if (low <= 0).any() or (low > high).any():
            raise InputError("low: must be above 0 and at most high, for every eigenvalue")
        object.__setattr__(self, "low", np.array(low, np.float64))
        object.__setattr__(self, "high", np.array(high, np.float64))

    def member(self, values: Array) -> MahalanobisCost:
        """The cost with these eigenvalues [d]."""
        return MahalanobisCost((self.vectors * values) @ self.vectors.T, self.budget)

    def extreme_costs(self, w: Array) -> tuple[Cost, Cost]:
        """See `CostSet`."""
        return self.member(self.high), self.member(self.low)

    def grid(self, count: int) -> list[Cost]:
        """Members between the corners, evenly in the logarithm of the eigenvalues."""
        return [self.member(self.high ** (1 - t) * self.low**t) for t in _fractions(count)]

    def contains(self, cost: Cost) -> bool:
        """See `CostSet`."""
        if not isinstance(cost, MahalanobisCost) or cost.budget != self.budget:
            return False
        turned = self.vectors.T @ cost.sigma @ self.vectors
        values = np.diag(turned)
        common = np.allclose(turned, np.diag(values), atol=1e-9 * (1 + np.abs(turned).max()))
        return bool(common and (values >= self.low - 1e-9).all() and (values <= self.high + 1e-9).all())


@dataclass(frozen=True)
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

    def __post_init__(self) -> None:
        smallest = float(np.linalg.eigvalsh(MahalanobisCost(self.center).sigma)[0])
        if not 0 <= self.radius < smallest:
            raise InputError(f"radius: {self.radius} is not between 0 and the smallest eigenvalue, {smallest:g}")

    def extreme_costs(self, w: Array) -> tuple[Cost, Cost]:
        """See `CostSet`: the centre plus and minus radius I, for every w."""
        eye = self.radius * np.eye(len(self.center))
        return MahalanobisCost(self.center + eye, self.budget), MahalanobisCost(self.center - eye, self.budget)

    def grid(self, count: int) -> list[Cost]:
        """Members on the line between the extremes."""
        eye = np.eye(len(self.center))
        return [
            MahalanobisCost(self.center + self.radius * (1 - 2 * t) * eye, self.budget) for t in _fractions(count)
        ]

    def contains(self, cost: Cost) -> bool:
        """See `CostSet`."""
        if not isinstance(cost, MahalanobisCost) or cost.budget != self.budget:
            return False
        return bool(np.abs(np.linalg.eigvalsh(cost.sigma - self.center)).max() <= self.radius + 1e-9)


@dataclass(frozen=True)
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
