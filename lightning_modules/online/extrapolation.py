"""The set of test distributions, affine combinations of groups, and the one-shot minimax problems over it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_modules.errors import InputError

if TYPE_CHECKING:
    from lightning_modules.online.groups import Domain, QuadraticGroups

Array = NDArray[np.float64]
"""Every array of this package."""

_GAP = 1e-9
_ITERATIONS = 20_000


@dataclass(frozen=True)
class ExtrapolationSet:
    """Delta_{E,alpha} = { lam in R^E : sum_e lam_e = 1, lam_e >= -alpha }; alpha = 0 is the simplex (interpolation).

    It is a simplex of mass 1 + E alpha shifted by -alpha: each of its E vertices has one entry 1 + (E - 1) alpha and
    the others -alpha.

    Args:
        n_groups: E, at least 1.
        alpha: how far a weight may fall below zero, 0 or more.

    Raises:
        InputError: either is out of range.

    Source: Krueger et al., arXiv 2003.00688 (the set of MM-REx).
    """

    n_groups: int
    alpha: float

    def __post_init__(self) -> None:
        if self.n_groups < 1:
            raise InputError(f"n_groups: {self.n_groups} is not positive; give the number of groups")
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise InputError(f"alpha: {self.alpha} is not a number of 0 or more; 0 is interpolation")

    def vertices(self) -> Array:
        """Return the vertices [E, E], one a row."""
        return (1 + self.n_groups * self.alpha) * np.eye(self.n_groups) - self.alpha

    def project(self, v: Array) -> Array:
        """Return the points of the set nearest to v [..., E], in Euclidean distance (sort and threshold)."""
        v = self._checked(v)
        mass = 1 + self.n_groups * self.alpha
        shifted = v - v.max(-1, keepdims=True)  # the answer does not change, and large numbers lose no digits
        descending = -np.sort(-shifted, axis=-1)
        thresholds = (descending.cumsum(-1) - mass) / np.arange(1, self.n_groups + 1)
        last = (descending > thresholds).sum(-1, keepdims=True) - 1
        projected: Array = np.maximum(shifted - np.take_along_axis(thresholds, last, -1), 0) - self.alpha
        return projected

    def contains(self, lam: Array, tol: float = 1e-9) -> NDArray[np.bool_]:
        """Say for each of lam [..., E] whether it lies in the set up to `tol`, [...] bool."""
        lam = self._checked(lam)
        inside: NDArray[np.bool_] = (np.abs(lam.sum(-1) - 1) <= tol) & (lam.min(-1) >= -self.alpha - tol)
        return inside

    def worst_case(self, risks: Array) -> tuple[Array, Array]:
        """Maximise lam . risks over the set.

        Args:
            risks: [..., E].

        Returns:
            The values (1 + E alpha) max_e R_e - alpha sum_e R_e, [...], and the maximising vertices [..., E] (of
            several the first).
        """
        risks = self._checked(risks)
        value = (1 + self.n_groups * self.alpha) * risks.max(-1) - self.alpha * risks.sum(-1)
        return value, self.vertices()[risks.argmax(-1)]

    def sample(self, n: int, generator: np.random.Generator) -> Array:
        """Draw n points [n, E] uniformly from the set."""
        mass = 1 + self.n_groups * self.alpha
        return mass * generator.dirichlet(np.ones(self.n_groups), n) - self.alpha

    def _checked(self, array: Array) -> Array:
        array = np.asarray(array, dtype=np.float64)
        if array.ndim == 0 or array.shape[-1] != self.n_groups:
            raise InputError(f"weights or risks of shape {array.shape}: the last axis must have {self.n_groups} groups")
        return array


@dataclass(frozen=True)
class OneShot:
    """A solution of a one-shot problem.

    Args:
        b: [d] parameters.
        value: the worst case over the set at b.
        weights: [E] mixture that b minimises; NaN where the problem is not convex.
        gap: certified bound on how far `value` lies above the optimum; NaN where the problem is not convex.
    """

    b: Array
    value: float
    weights: Array
    gap: float


def pooled_erm(groups: QuadraticGroups, domain: Domain | None = None, balanced: bool = False) -> Array:
    """Minimise the mean loss over all groups' examples together, [d]; if `balanced` the plain mean of the groups' risks."""
    sizes = np.ones(groups.n_groups) if balanced else groups.sizes
    b: Array = groups.minimise((sizes / sizes.sum())[None], domain=domain)[0]
    return b


def group_dro(groups: QuadraticGroups, domain: Domain | None = None) -> OneShot:
    """Minimise max_e R_e(b): the worst case over interpolations.

    Source: Sagawa et al., arXiv 1911.08731, there for networks.
    """
    return mm_rex(groups, 0.0, domain)


def mm_rex(groups: QuadraticGroups, alpha: float, domain: Domain | None = None, seed: int = 0) -> OneShot:
    """Minimise max over lam in Delta_{E,alpha} of lam . R(b).

    Where every vertex of the set gives a convex risk, the problem is convex: accelerated projected gradient ascent on
    the weights of its dual, max_lam min_b lam . R(b), ends with a certified gap. Else it is not, b needs a bounded
    domain, and the best of 17 projected subgradient descents in b is returned without a certificate.

    Args:
        groups: the risks.
        alpha: 0 is group DRO.
        domain: where b may lie; None for everywhere.
        seed: of the starting points of the second case.

    Raises:
        InputError: alpha < 0; or not convex and no domain.

    Source: Krueger et al., arXiv 2003.00688, eq. (MM-REx).
    """
    extrapolation = ExtrapolationSet(groups.n_groups, alpha)
    if groups.smallest_curvature(extrapolation.vertices()) > 0:
        return _dual_ascent(groups, extrapolation, domain)
    if domain is None:
        raise InputError(
            f"alpha: with {alpha} a mixture of the risks is not strongly convex; give a domain, a smaller alpha or more ridge"
        )
    return _descend(groups, extrapolation, domain, np.random.default_rng(seed))


def _dual_ascent(groups: QuadraticGroups, extrapolation: ExtrapolationSet, domain: Domain | None) -> OneShot:
    """FISTA with restarts and a step that adapts to the curvature met."""
    weights = previous = np.full(groups.n_groups, 1 / groups.n_groups)
    ahead, momentum, step = weights, 1.0, 1.0
    best = OneShot(groups.origin, math.inf, weights, math.inf)
    lower = -math.inf
    for _ in range(_ITERATIONS):
        b = groups.minimise(ahead[None], domain=domain)[0]
        risks = groups.value(b)
        dual = float(ahead @ risks)
        # a dual value bounds the optimum from below only inside the set, which momentum may leave
        lower = max(lower, dual) if extrapolation.contains(ahead, 1e-12) else lower
        value = float(extrapolation.worst_case(risks)[0])
        if value < best.value:
            best = OneShot(b, value, ahead, value - lower)
        if best.value - lower <= _GAP * max(1.0, abs(best.value)):
            break
        while True:  # backtrack until the quadratic model of the concave dual lies below it
            weights = extrapolation.project(ahead + step * risks)
            move = weights - ahead
            there = float(weights @ groups.value(groups.minimise(weights[None], domain=domain)[0]))
            lower = max(lower, there)
            if there >= dual + risks @ move - move @ move / (2 * step) - 1e-15 or step < 1e-12:
                break
            step /= 2
        if (weights - previous) @ (ahead - weights) > 0:  # momentum points downhill
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = weights + (momentum - 1) / following * (weights - previous)
        if not extrapolation.contains(ahead, 0.0):
            ahead = extrapolation.project(ahead)
        previous, momentum, step = weights, following, step * 1.1
    return OneShot(best.b, best.value, best.weights, best.value - lower)


def _descend(
    groups: QuadraticGroups, extrapolation: ExtrapolationSet, domain: Domain, generator: np.random.Generator
) -> OneShot:
    """Projected subgradient descent from 16 random starts and from balanced ERM at once, with steps that shrink to 1e-6."""
    steps = np.geomspace(domain.radius, 1e-6 * domain.radius, 2000)
    starts = domain.radius * generator.uniform(-1, 1, (16, groups.dimension))
    b = domain.project(np.concatenate([starts, pooled_erm(groups, domain, balanced=True)[None]]))
    best_b, best_value = groups.origin, math.inf
    for step in steps:
        values, weights = extrapolation.worst_case(groups.value(b))
        if values.min() < best_value:
            best_b, best_value = b[values.argmin()].copy(), float(values.min())
        slope = np.einsum("se,sed->sd", weights, groups.grad(b))
        norm = np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-12)
        b = domain.project(b - step * slope / norm)
    return OneShot(best_b, best_value, np.full(groups.n_groups, math.nan), math.nan)
