"""Costs of moving: a norm, and the largest length that somebody would pay for to be accepted."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lightning_modules.errors import InputError

Array = np.ndarray


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
        return self.budget * self.dual_norm(w)


@dataclass(frozen=True)
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
    manipulable: Array | None = None
    inverse: Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sigma = np.asarray(self.sigma, np.float64)
        if sigma.ndim != 2 or sigma.shape[0] != sigma.shape[1]:
            raise InputError(f"sigma: has shape {list(sigma.shape)}, not [d, d]")
        if not np.allclose(sigma, sigma.T, atol=1e-10 * (1 + np.abs(sigma).max())):
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
        object.__setattr__(self, "inverse", inverse)

    def norm(self, z: Array) -> Array:
        """Lengths; infinite for a move of what cannot be changed."""
        found: Array = np.sqrt(np.einsum("...i,ij,...j->...", z, self.sigma, z))
        if self.manipulable is not None:
            found = np.where((z[..., ~self.manipulable] != 0).any(-1), math.inf, found)
        return found

    def dual_norm(self, w: Array) -> Array:
        """See `Cost`."""
        _check_width(w, len(self.sigma))
        found: Array = np.sqrt(np.maximum(0, np.einsum("...i,ij,...j->...", w, self.inverse, w)))
        return found

    def dual_maximizer(self, w: Array) -> Array:
        """See `Cost`."""
        length = self.dual_norm(w)[..., None]
        found: Array = np.divide(w @ self.inverse, length, out=np.zeros_like(w, dtype=np.float64), where=length > 0)
        return found


@dataclass(frozen=True)
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
    manipulable: Array | None = None

    def __post_init__(self) -> None:
        if not self.p >= 1:
            raise InputError(f"p: {self.p} is below 1, so no norm; give 1 or more, inf among them")
        _check_budget(self.budget)

    @property
    def q(self) -> float:
        """The dual exponent."""
        if self.p == 1:
            return math.inf
        return 1.0 if math.isinf(self.p) else self.p / (self.p - 1)

    def _masked(self, w: Array) -> Array:
        if self.manipulable is None:
            return w
        mask = _check_mask(self.manipulable, w.shape[-1])
        return np.where(mask, w, 0.0)

    def norm(self, z: Array) -> Array:
        """Lengths; infinite for a move of what cannot be changed."""
        found: Array = np.linalg.norm(z, ord=self.p, axis=-1)
        if self.manipulable is not None:
            found = np.where((z[..., ~self.manipulable] != 0).any(-1), math.inf, found)
        return found

    def dual_norm(self, w: Array) -> Array:
        """See `Cost`."""
        found: Array = np.linalg.norm(self._masked(w), ord=self.q, axis=-1)
        return found

    def dual_maximizer(self, w: Array) -> Array:
        """See `Cost`; for p = 1 all of the move is in one largest coordinate."""
        w = np.asarray(self._masked(w), np.float64)
        if math.isinf(self.p):
            return np.sign(w)
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

    Args:
        costs: P lists of J costs each.

    Raises:
        InputError: lists of different lengths, or none.
    """

    def __init__(self, costs: Sequence[Sequence[Cost]]) -> None:
        if not costs or not costs[0] or len({len(row) for row in costs}) > 1:
            raise InputError("costs: give every problem equally many, one or more")
        self.problems, self.count = len(costs), len(costs[0])
        self._costs = [list(row) for row in costs]
        flat = [cost for row in costs for cost in row]
        self._inverse: Array | None = None
        if all(isinstance(cost, MahalanobisCost) for cost in flat):
            # u ||w||_* = sqrt(w' (u^2 Sigma^-1) w): one product for all.
            self._inverse = np.stack(
                [np.stack([c.budget**2 * c.inverse for c in row if isinstance(c, MahalanobisCost)]) for row in costs]
            )

    def shifts(self, w: Array) -> Array:
        """k [P, J]."""
        if self._inverse is not None:
            moved = np.matmul(self._inverse, w[:, None, :, None])[..., 0]
            return np.sqrt(np.maximum(0, (moved * w[:, None]).sum(-1)))
        return np.array([[float(c.shift(w[p])) for c in row] for p, row in enumerate(self._costs)])

    def gradients(self, w: Array) -> Array:
        """Subgradients [P, J, d] of the shifts by w, u v*."""
        if self._inverse is not None:
            moved = np.matmul(self._inverse, w[:, None, :, None])[..., 0]
            length = np.sqrt(np.maximum(0, (moved * w[:, None]).sum(-1, keepdims=True)))
            found: Array = np.divide(moved, length, out=np.zeros_like(moved), where=length > 0)
            return found
        return np.array([[c.budget * c.dual_maximizer(w[p]) for c in row] for p, row in enumerate(self._costs)])


def _check_budget(budget: float) -> None:
    if not 0 <= budget < math.inf:
        raise InputError(f"budget: {budget} is no length; give 0 or more")


def _check_mask(mask: Array | None, width: int) -> Array:
    if mask is None:
        return np.ones(width, bool)
    if np.asarray(mask).shape != (width,) or np.asarray(mask).dtype != bool or not np.asarray(mask).any():
        raise InputError(f"manipulable: give {width} truth values, one or more of them true")
    return np.asarray(mask)


def _check_width(w: Array, width: int) -> None:
    if w.shape[-1] != width:
        raise InputError(f"weights: have {w.shape[-1]} features, the cost {width}; make them equal")
