"""Why extrapolation is hard: two strongly convex group risks whose extrapolation is max-cut.

Graph with Laplacian L on n nodes, b in [-1, 1]^n, R_1 = |b|^2 / 4, R_2 = b'(L + I)b / 2. The weights (2, -1), of
alpha = 1, give -b'Lb / 2, whose minimum over the cube is -2 maxcut. Every interpolation of the two is convex with its
minimum at b = 0. Derived here, to make the hardness stated in the abstract of arXiv 2102.13128 measurable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.online.extrapolation import Array
from lightning_modules.online.groups import QuadraticGroups

MAX_EXACT_NODES = 24
"""Largest graph that is enumerated: 2^23 cuts."""

WEIGHTS = (2.0, -1.0)
"""The extrapolation that is max-cut."""

_ROWS = 256


@dataclass(frozen=True)
class GapReport:
    """How far projected gradient stays behind the optimum.

    Args:
        maxcut: largest cut.
        minimum: -2 maxcut, the minimum of the extrapolated risk.
        best: lowest value that a start reached.
        mean_gap: mean over starts of 1 - value / minimum, in [0, 1].
        success: share of starts that reached the minimum.
        mixture_gradient: largest gradient norm that gradient descent ends with on interpolations of the same groups.
    """

    maxcut: float
    minimum: float
    best: float
    mean_gap: float
    success: float
    mixture_gradient: float


class MaxCutExtrapolation:
    """One step of ERM under extrapolation, on a graph.

    Args:
        graph: [n, n] symmetric adjacency matrix of edge weights of 0 or more, zero on its diagonal.

    Raises:
        InputError: it is not that.

    Example:
        >>> pentagon = np.roll(np.eye(5), 1, 0) + np.roll(np.eye(5), -1, 0)
        >>> MaxCutExtrapolation(pentagon).exact()[0]
        4.0
    """

    def __init__(self, graph: Array) -> None:
        graph = np.asarray(graph, dtype=np.float64)
        if graph.ndim != 2 or graph.shape[0] != graph.shape[1] or len(graph) < 2:
            raise InputError(f"graph: shape {graph.shape}; give an adjacency matrix [n, n] with n of 2 or more")
        sound = np.isfinite(graph).all() and (graph >= 0).all() and np.array_equal(graph, graph.T)
        if not sound or graph.diagonal().any():
            raise InputError(
                "graph: is not symmetric with weights of 0 or more and a diagonal of zeros; mend the matrix"
            )
        self.graph = graph
        self.laplacian = np.diag(graph.sum(0)) - graph

    def groups(self) -> QuadraticGroups:
        """Return the two risks; play them on Domain("box", 1.0)."""
        identity = np.eye(len(self.graph))
        A = np.stack([identity / 2, self.laplacian + identity])
        return QuadraticGroups(A, np.zeros((2, len(identity))), np.zeros(2))

    def objective(self, b: Array) -> Array:
        """Compute the extrapolated risk 2 R_1 - R_2 = -b'Lb / 2 at b [..., n]."""
        values: Array = -((b @ self.laplacian) * b).sum(-1) / 2
        return values

    def exact(self) -> tuple[float, Array]:
        """Find the largest cut by enumeration, and a corner [n] of +-1 that attains it.

        The nodes are dealt into two halves; with u and v the sides of each, u'Au + v'Av + 2 u'Av for all pairs is one
        matrix product a block. The last node's side is fixed, as swapping all sides changes nothing.

        Raises:
            InputError: more than MAX_EXACT_NODES nodes.
        """
        n = len(self.graph)
        if n > MAX_EXACT_NODES:
            raise InputError(f"graph: {n} nodes are too many to enumerate; up to {MAX_EXACT_NODES}, or use descend()")
        half = n // 2
        u, v = _sides(half), _sides(n - half)
        v = v[: len(v) // 2]
        A = self.graph
        within_u = ((u @ A[:half, :half]) * u).sum(1)
        within_v = ((v @ A[half:, half:]) * v).sum(1)
        across = 2 * u @ A[:half, half:]
        best, corner = np.inf, np.ones(n)
        for low in range(0, len(u), _ROWS):
            part = slice(low, low + _ROWS)
            products = across[part] @ v.T + within_u[part, None] + within_v
            row, column = np.unravel_index(products.argmin(), products.shape)
            if products[row, column] < best:
                best = products[row, column]
                corner = np.concatenate([u[low + row], v[column]])
        return float((A.sum() - best) / 4), corner

    def descend(
        self,
        starts: int,
        generator: np.random.Generator,
        radius: float = 1.0,
        step: float = 0.1,
        steps: int = 5000,
    ) -> Array:
        """Run projected gradient descent on the extrapolated risk from many random points of the cube at once.

        Args:
            starts: how many.
            generator: of the points, uniform in [-radius, radius]^n.
            radius: 1 for the whole cube. The smaller, the more the first steps align a start with the Laplacian's top
                eigenvector, and the more often it ends well.
            step: length of a step in units of the gradient.
            steps: at most so many; it stops where nothing moves any more.

        Returns:
            Where each start ended, [starts, n].
        """
        b = radius * generator.uniform(-1, 1, (starts, len(self.graph)))
        for _ in range(steps):
            following = (b + step * (b @ self.laplacian)).clip(-1, 1)
            if np.array_equal(following, b):
                break
            b = following
        return b

    def interpolate(self, generator: np.random.Generator, mixtures: int = 8) -> Array:
        """Minimise random interpolations of the same two risks by gradient descent, and return gradient norms [mixtures]."""
        share = generator.uniform(0, 1, (mixtures, 1))
        groups = self.groups()
        A = np.tensordot(np.concatenate([share, 1 - share], 1), groups.A, 1)
        eigenvalues = np.linalg.eigvalsh(A)
        b = generator.uniform(-1, 1, (mixtures, len(self.graph), 1))
        rate = 2 / (eigenvalues[:, 0] + eigenvalues[:, -1])[:, None, None]
        for _ in range(20_000):
            slope = A @ b
            if np.linalg.norm(slope, axis=1).max() <= 1e-9:
                break
            b = (b - rate * slope).clip(-1, 1)
        return np.asarray(np.linalg.norm(A @ b, axis=(1, 2)))

    def report(self, starts: int, seed: int, radius: float = 1.0, step: float = 0.1) -> GapReport:
        """Compare the descent from `starts` random points with the exact minimum.

        Raises:
            InputError: starts < 1, radius outside (0, 1], step not above 0, or too many nodes to enumerate.
        """
        if not 0 < radius <= 1:
            raise InputError(f"radius: {radius} is not in (0, 1]; 1 starts anywhere in the cube")
        if not step > 0:
            raise InputError(f"step: {step} is not above 0; 0.1 is usual")
        if starts < 1:
            raise InputError(f"starts: {starts} is too few; give 1 or more")
        maxcut, _ = self.exact()
        generator = np.random.default_rng(seed)
        values = self.objective(self.descend(starts, generator, radius, step))
        minimum = -2 * maxcut
        reached = values <= minimum + 1e-6 * max(1.0, abs(minimum))
        gap = 1 - values / minimum if minimum else np.zeros(starts)
        mixture = float(self.interpolate(generator).max())
        return GapReport(maxcut, minimum, float(values.min()), float(gap.mean()), float(reached.mean()), mixture)


def named_graph(name: str) -> Array:
    """Return the adjacency matrix of "C5" (the pentagon, maxcut 4), "K6" (complete, 9) or "Petersen" (12).

    Raises:
        InputError: for another name.
    """
    ring, star = (np.roll(np.eye(5), k, 0) + np.roll(np.eye(5), -k, 0) for k in (1, 2))
    graphs = {"C5": ring, "K6": 1.0 - np.eye(6), "Petersen": np.block([[ring, np.eye(5)], [np.eye(5), star]])}
    if name not in graphs:
        raise InputError(f"graph: unknown {name!r}; choose one of {', '.join(graphs)}")
    return graphs[name]


def random_graph(n: int, density: float, generator: np.random.Generator) -> Array:
    """Draw G(n, density): each pair of n nodes is an edge with that probability; adjacency [n, n].

    Raises:
        InputError: n < 2, or density outside [0, 1].
    """
    if n < 2 or not 0 <= density <= 1:
        raise InputError(f"random graph: n {n}, density {density}; give 2 or more nodes and a probability")
    upper = np.triu(generator.random((n, n)) < density, 1)
    return (upper | upper.T).astype(np.float64)


def _sides(count: int) -> Array:
    """All sides of `count` nodes, [2^count, count] of +-1; the last node's is +1 in the first half."""
    bits = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    return np.asarray(1 - 2 * bits, dtype=np.float64)
