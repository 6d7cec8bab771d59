"""Costs of moving: a norm, and the largest length that somebody would pay for to be accepted."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightning_modules.errors import InputError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Cost(ABC):
    """A norm ||z||_c and a budget u: a move by z is paid for if ||z||_c <= u.

    Whatever increasing function of the norm the true cost is, only u enters.
    """

    budget: float

    @abstractmethod
    def norm(self, z: Array) -> Array:
        """Lengths [...] of moves [..., d]."""

    @abstractmethod
    def dual_norm(self, w: Array) -> Array:
        """max {w.v : ||v||_c <= 1}, [...] for weights [..., d]: how much a move of length one can raise a score."""

    @abstractmethod
    def dual_maximizer(self, w: Array) -> Array:
        """The v [..., d] that attains the dual norm, also a subgradient of it; 0 where w is 0."""

    def shift(self, w: Array) -> Array:
        """How much a score can be raised within the budget, k = u ||w||_*."""
        found: Array = self.budget * self.dual_norm(w)
        return found


@dataclass(frozen=True, eq=False)
class MahalanobisCost(Cost):
    """||z|| = sqrt(z' Sigma z); its dual is sqrt(w' Sigma^-1 w), so a smaller Sigma lets people move further.

    Args:
        sigma: [d, d], symmetric and positive definite.
        budget: u >= 0.
        manipulable: [d] which features can be changed at all; None: all. Sigma then counts on these alone.

    Raises:
        InputError: a sigma or budget that is not so.
    """

    sigma: Array
    budget: float = 1.0
    manipulable: Mask | None = None
    inverse: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sigma = np.asarray(self.sigma, np.float64)
        if sigma.ndim != 2 or sigma.shape[0] != sigma.shape[1]:
            raise InputError(f"sigma: has shape {list(sigma.shape)}; give a square matrix [d, d]")
        if not np.isfinite(sigma).all():
            raise InputError("sigma: holds NaN or infinite numbers; leave what cannot be changed out of `manipulable`")
        if not np.allclose(sigma, sigma.T, rtol=0, atol=1e-10 * (1 + np.abs(sigma).max())):
            raise InputError("sigma: is not symmetric; give (sigma + sigma.T) / 2")
        _check_budget(self.budget)
        mask = _check_mask(self.manipulable, len(sigma))
        block = sigma[np.ix_(mask, mask)]
        try:
            factor = np.linalg.inv(np.linalg.cholesky(block))
        except np.linalg.LinAlgError:
            raise InputError("sigma: is not positive definite; every direction must cost something") from None
        inverse = np.zeros_like(sigma)
        inverse[np.ix_(mask, mask)] = factor.T @ factor
        object.__setattr__(self, "sigma", sigma)
        object.__setattr__(self, "inverse", inverse)
        object.__setattr__(self, "manipulable", None if self.manipulable is None else mask)

    def _turned(self, w: Array) -> Array:
        """Sigma^-1 w, row by row, so that its rounding does not depend on how many rows there are."""
        found: Array = np.matmul(w[..., None, :], self.inverse)[..., 0, :]
        return found

    def norm(self, z: Array) -> Array:
        """Lengths; infinite for a move of what cannot be changed."""
        _check_width(z, len(self.sigma), "moves")
        found: Array = np.sqrt(np.maximum(0, ((z @ self.sigma) * z).sum(-1)))
        return _forbid(found, z, self.manipulable)

    def dual_norm(self, w: Array) -> Array:
        """See `Cost`."""
        _check_width(w, len(self.sigma), "weights")
        found: Array = np.sqrt(np.maximum(0, (self._turned(w) * w).sum(-1)))
        return found

    def dual_maximizer(self, w: Array) -> Array:
        """See `Cost`."""
        length = self.dual_norm(w)[..., None]
        found: Array = np.divide(self._turned(w), length, out=np.zeros_like(w, dtype=np.float64), where=length > 0)
        return found


@dataclass(frozen=True, eq=False)
class LpCost(Cost):
    """||z||_p; its dual is ||w||_q with 1/p + 1/q = 1.

    Args:
        p: 1 to infinity.
        budget: u >= 0.
        manipulable: [d] which features can be changed; None: all.

    Raises:
        InputError: p below 1, or a negative budget.
    """

    p: float = 2.0
    budget: float = 1.0
    manipulable: Mask | None = None

    def __post_init__(self) -> None:
        if not self.p >= 1:
            raise InputError(f"p: {self.p} is below 1, so no norm; give 1 or more, inf among them")
        _check_budget(self.budget)
        if self.manipulable is not None:
            object.__setattr__(self, "manipulable", _check_mask(self.manipulable, len(self.manipulable)))

    @property
    def q(self) -> float:
        """The dual exponent."""
        if self.p == 1:
            return math.inf
        return 1.0 if math.isinf(self.p) else self.p / (self.p - 1)

    def _masked(self, w: Array) -> Array:
        if self.manipulable is None:
            return w
        _check_width(w, len(self.manipulable), "weights")
        return np.where(self.manipulable, w, 0.0)

    def norm(self, z: Array) -> Array:
        """Lengths; infinite for a move of what cannot be changed."""
        found: Array = np.linalg.norm(z, ord=self.p, axis=-1)
        return _forbid(found, z, self.manipulable)

    def dual_norm(self, w: Array) -> Array:
        """See `Cost`."""
        found: Array = np.linalg.norm(self._masked(w), ord=self.q, axis=-1)
        return found

    def dual_maximizer(self, w: Array) -> Array:
        """See `Cost`; for p = 1 all of the move is in one largest coordinate."""
        w = np.asarray(self._masked(w), np.float64)
        if math.isinf(self.p):
            signs: Array = np.sign(w)
            return signs
        size = np.abs(w)
        if self.p == 1:
            chosen = np.zeros_like(w)
            top = size.argmax(-1)[..., None]
            np.put_along_axis(chosen, top, np.sign(np.take_along_axis(w, top, -1)), -1)
            return chosen
        length = np.linalg.norm(w, ord=self.q, axis=-1)[..., None]
        ratio = np.divide(size, length, out=np.zeros_like(w), where=length > 0)
        found: Array = np.sign(w) * ratio ** (self.q - 1)
        return found


class CostStack:
    """J costs of each of P problems, for weights [P, d] at once.

    Costs of the same kind are evaluated together, whichever problem they belong to.

    Args:
        costs: P lists of J costs each.

    Raises:
        InputError: lists of different lengths, or none.
    """

    def __init__(self, costs: Sequence[Sequence[Cost]]) -> None:
        if not costs or not costs[0] or len({len(row) for row in costs}) > 1:
            raise InputError("costs: give every problem equally many, one or more")
        self.problems, self.count = len(costs), len(costs[0])
        self._inverse: Array | None = None
        self._kinds: list[tuple[Cost, Array, tuple[NDArray[np.intp], NDArray[np.intp]]]] = []
        if all(isinstance(cost, MahalanobisCost) for row in costs for cost in row):
            # u ||w||_* = sqrt(w' (u^2 Sigma^-1) w): one product for all. Costs that all problems share are held once.
            shared = all(own is first for row in costs for own, first in zip(row, costs[0], strict=True))
            rows = costs[:1] if shared else costs
            self._inverse = np.stack(
                [np.stack([c.budget**2 * c.inverse for c in row if isinstance(c, MahalanobisCost)]) for row in rows]
            )
            return
        places: dict[object, list[tuple[int, int, Cost]]] = {}
        for p, row in enumerate(costs):
            for j, c in enumerate(row):
                places.setdefault(_kind(c), []).append((p, j, c))
        for found in places.values():
            where = np.array([p for p, _, _ in found]), np.array([j for _, j, _ in found])
            self._kinds.append((found[0][2], np.array([c.budget for _, _, c in found]), where))

    def shifts(self, w: Array) -> Array:
        """k [P, J]."""
        if self._inverse is not None:
            return self._products(w)[1]
        k = np.empty((self.problems, self.count))
        for cost, budgets, (p, j) in self._kinds:
            k[p, j] = budgets * cost.dual_norm(w[p])
        return k

    def gradients(self, w: Array) -> Array:
        """Subgradients [P, J, d] of the shifts by w, u v*."""
        if self._inverse is not None:
            moved, k = self._products(w)
            return np.divide(moved, k[..., None], out=np.zeros_like(moved), where=k[..., None] > 0)
        found = np.empty((self.problems, self.count, w.shape[1]))
        for cost, budgets, (p, j) in self._kinds:
            found[p, j] = budgets[:, None] * cost.dual_maximizer(w[p])
        return found

    def _products(self, w: Array) -> tuple[Array, Array]:
        """u^2 Sigma^-1 w [P, J, d] and k [P, J]."""
        assert self._inverse is not None
        _check_width(w, self._inverse.shape[-1], "weights")
        moved: Array = np.matmul(self._inverse, w[:, None, :, None])[..., 0]
        k: Array = np.sqrt(np.maximum(0, (moved * w[:, None]).sum(-1)))
        return moved, k


def _kind(cost: Cost) -> object:
    """Costs of equal kind have the same dual norm."""
    if isinstance(cost, LpCost):
        return cost.p, None if cost.manipulable is None else cost.manipulable.tobytes()
    return id(cost)


def _forbid(lengths: Array, z: Array, manipulable: Mask | None) -> Array:
    if manipulable is None:
        return lengths
    _check_width(z, len(manipulable), "moves")
    found: Array = np.where((z[..., ~manipulable] != 0).any(-1), math.inf, lengths)
    return found


def _check_budget(budget: float) -> None:
    if not 0 <= budget < math.inf:
        raise InputError(f"budget: {budget} is no length; give 0 or more")


def _check_mask(mask: Mask | None, width: int) -> Mask:
    if mask is None:
        return np.ones(width, bool)
    found = np.asarray(mask)
    if found.shape != (width,) or found.dtype != bool or not found.any():
        raise InputError(f"manipulable: give {width} truth values, one or more of them true")
    return found


def _check_width(values: Array, width: int, name: str) -> None:
    if values.shape[-1] != width:
        raise InputError(f"{name}: have {values.shape[-1]} features, the cost {width}; make them equal")
