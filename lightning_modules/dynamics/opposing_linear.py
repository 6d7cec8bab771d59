"""The two-layer linear model in which opposing signals, progressive sharpening and the edge of stability can be computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lightning_modules.errors import InputError

Array = np.ndarray


class Point(NamedTuple):
    """Parameters of K models: b [K, d], o [K, k] (b_o), c [K]."""

    b: Array
    o: Array
    c: Array


@dataclass(frozen=True)
class Trajectory:
    """Where a descent went, every few steps.

    Args:
        steps: [T].
        points: with axes [T, K, ...].
    """

    steps: Array
    points: Point


class OpposingLinearModel:
    """x ~ N(0, I_d), x_o = s a u with s = +1 or -1, each with probability p/2, else 0; y = beta.x + gamma a |s|.

    The target is even in the signal, so no linear use of it helps: the prediction c (b.x + b_o.x_o) fits best with w = u.b_o = 0.
    With alpha = p a^2 the loss, half the squared error, is

        0.5 |c b - beta|^2 + 0.5 alpha c^2 w^2 + 0.5 alpha gamma^2.

    K models that differ in |beta| (or in alpha, gamma) are computed together; all are of numpy in float64.

    Args:
        beta: [K, d], or [d] of one model.
        k: width of x_o; u is its all-ones direction.
        alpha: the non-zero eigenvalue of E[x_o x_o^T], [K] or one for all.
        gamma: what the signal adds to the target, in units of a, [K] or one for all.
        share: p, of the examples with a signal.

    Raises:
        InputError: a value out of range.

    Source: arXiv 2311.04163, section 3 (the setting, from memory); the closed forms are derived here.
    """

    def __init__(
        self, beta: Array, k: int = 4, alpha: Array | float = 20.0, gamma: Array | float = 1.0, share: float = 0.2
    ) -> None:
        self.beta = np.atleast_2d(np.asarray(beta, float))
        size = len(self.beta)
        self.alpha, self.gamma = (np.broadcast_to(np.asarray(v, float), (size,)) for v in (alpha, gamma))
        for name, value in (("alpha", self.alpha), ("beta", np.linalg.norm(self.beta, axis=1))):
            if not (np.isfinite(value).all() and (value > 0).all()):
                raise InputError(f"{name}: is {value.tolist()}; give a positive, finite size")
        if k < 1 or not 0 < share <= 1:
            raise InputError(f"k, share: are {k} and {share}; give k of 1 or more, a share of more than 0 up to 1")
        self.d, self.k, self.share = self.beta.shape[1], k, share
        self.u = np.full(k, k**-0.5)

    @property
    def amplitude(self) -> Array:
        """a, the length of a signal [K]."""
        return np.sqrt(self.alpha / self.share)

    def start(self, spread: float = 0.3, c: float = 0.3, seed: int = 0) -> Point:
        """A random start, the same for all K: b and b_o with standard deviation spread / sqrt(their width)."""
        generator = np.random.default_rng(seed)
        size = len(self.beta)
        b = spread / math.sqrt(self.d) * generator.standard_normal(self.d)
        o = spread / math.sqrt(self.k) * generator.standard_normal(self.k)
        return Point(np.tile(b, (size, 1)), np.tile(o, (size, 1)), np.full(size, c))

    def excess(self, at: Point) -> Array:
        """Loss above the least possible one, 0.5 alpha gamma^2; [K]."""
        error, w = at.c[..., None] * at.b - self.beta, at.o @ self.u
        found: Array = 0.5 * (error**2).sum(-1) + 0.5 * self.alpha * (at.c * w) ** 2
        return found

    def loss(self, at: Point) -> Array:
        """Population loss [K]."""
        found: Array = self.excess(at) + 0.5 * self.alpha * self.gamma**2
        return found

    def gradient(self, at: Point) -> Point:
        """Of the population loss."""
        error, w = at.c[..., None] * at.b - self.beta, at.o @ self.u
        along = self.alpha * at.c**2 * w
        slope = (at.b * error).sum(-1) + self.alpha * at.c * w**2
        return Point(at.c[..., None] * error, along[..., None] * self.u, slope)

    def hessian(self, at: Point) -> Array:
        """Of the population loss [..., d + k + 1, d + k + 1], in the order b, b_o, c."""
        d, k = self.d, self.k
        c, w = at.c, at.o @ self.u
        found = np.zeros((*c.shape, d + k + 1, d + k + 1))
        found[..., :d, :d] = (c**2)[..., None, None] * np.eye(d)
        found[..., d:-1, d:-1] = (self.alpha * c**2)[..., None, None] * np.outer(self.u, self.u)
        found[..., -1, -1] = (at.b**2).sum(-1) + self.alpha * w**2
        mixed = np.concatenate(
            [2 * c[..., None] * at.b - self.beta, (2 * self.alpha * c * w)[..., None] * self.u], axis=-1
        )
        found[..., -1, :-1] = found[..., :-1, -1] = mixed
        return found

    def sharpness(self, at: Point) -> Array:
        """Largest eigenvalue of the Hessian [...]."""
        found: Array = np.linalg.eigvalsh(self.hessian(at))[..., -1]
        return found

    def invariant(self, at: Point) -> Array:
        """c^2 - |b|^2 - |b_o|^2, which gradient flow conserves [...]."""
        found: Array = at.c**2 - (at.b**2).sum(-1) - (at.o**2).sum(-1)
        return found

    def limit_sharpness(self, start: Point) -> Array:
        """Sharpness at the end of the gradient flow from a start [K]: about alpha |beta| from a balanced one.

        There w = 0 and c b = beta, and kappa = c^2 - |b|^2 - w^2 is conserved, so c^2 = (kappa + sqrt(kappa^2 + 4 |beta|^2)) / 2.
        """
        size = np.linalg.norm(self.beta, axis=1)
        kappa = start.c**2 - (start.b**2).sum(-1) - (start.o @ self.u) ** 2
        c2 = (kappa + np.sqrt(kappa**2 + 4 * size**2)) / 2
        found: Array = np.maximum(self.alpha * c2, c2 + size**2 / c2)
        return found

    def group_losses(self, at: Point) -> tuple[Array, Array]:
        """Part of the loss of an example with signal +a u, and with -a u, that depends on the signal: each [...]."""
        z = at.c * (at.o @ self.u)
        return 0.5 * self.alpha / self.share * (z - self.gamma) ** 2, 0.5 * self.alpha / self.share * (
            z + self.gamma
        ) ** 2

    def gradient_descent(self, start: Point, lr: Array | float, steps: int, every: int = 1) -> Trajectory:
        """Gradient descent of K models, each with a step size of its own.

        Args:
            start: first point.
            lr: [K] or one for all.
            steps: of descent.
            every: steps between the points that are kept.

        Raises:
            InputError: a model diverges.
        """
        rate = np.broadcast_to(np.asarray(lr, float), self.alpha.shape)
        at, kept = start, [start]
        for step in range(1, steps + 1):
            slope = self.gradient(at)
            at = Point(at.b - rate[:, None] * slope.b, at.o - rate[:, None] * slope.o, at.c - rate * slope.c)
            if step % every == 0:
                if not np.isfinite(at.c).all():
                    raise InputError(f"lr: {rate.tolist()} diverges by step {step}; give smaller step sizes")
                kept.append(at)
        columns = [np.stack(column) for column in zip(*kept, strict=True)]
        return Trajectory(np.arange(len(kept)) * every, Point(*columns))

    def gradient_flow(self, start: Point, steps: int = 40_000, every: int = 100, lr: float = 5e-4) -> Trajectory:
        """Gradient flow, as gradient descent with a step size small enough for four digits."""
        return self.gradient_descent(start, lr, steps, every)

    def simulate(self, n: int, seed: int = 0) -> tuple[Array, Array, Array]:
        """Draw n examples of the first model: x [n, d], x_o [n, k], y [n]."""
        generator = np.random.default_rng(seed)
        x = generator.standard_normal((n, self.d))
        sign = generator.choice([1.0, -1.0, 0.0], n, p=[self.share / 2, self.share / 2, 1 - self.share])
        a = float(self.amplitude[0])
        y = x @ self.beta[0] + float(self.gamma[0]) * a * np.abs(sign)
        return x, sign[:, None] * a * self.u, y
