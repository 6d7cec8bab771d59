"""Minimax training: one classifier against the worst of several costs; P problems side by side, no loop over examples.

Both solvers minimise max_j [mean strategic hinge at cost j + lam k_j(w)] over ||w||_2 <= B, |b| <= B. With lam at least the share
of positives the objective is convex, for every norm (derived: for a positive max(0, 1 - s - k) + k = max(k, 1 - s)); below that
it is not, and the same steps find a good point from w = 0. b is neither regularised nor part of any norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_modules.errors import InputError
from lightning_modules.strategic.costs import Array, Cost, CostStack

_REACH = 0.15


@dataclass(frozen=True)
class Problems:
    """P training problems of n examples and J costs each.

    Args:
        inputs: [n, d] for all, or [P, n, d].
        y: [n] or [P, n], -1 and +1.
        costs: P lists of J costs.
        lam: [P] weights of the dual-norm regularisation.
        radius: B.
        l2: [P] weights of (l2 / 2) ||w||^2, for a baseline; None: none.

    Raises:
        InputError: shapes that do not fit, or negative weights.
    """

    inputs: Array
    y: Array
    costs: Sequence[Sequence[Cost]]
    lam: Array
    radius: float = 10.0
    l2: Array | None = None

    def __post_init__(self) -> None:
        count = len(self.costs)
        if self.inputs.ndim not in (2, 3) or self.inputs.shape[:-1] != self.y.shape:
            raise InputError(
                f"y: has shape {list(self.y.shape)}, inputs {list(self.inputs.shape)}; give one label a row"
            )
        if self.inputs.ndim == 3 and len(self.inputs) != count:
            raise InputError(f"costs: for {count} problems, inputs for {len(self.inputs)}; make them equal")
        if not (np.abs(self.y) == 1).all():
            raise InputError("y: holds other values than -1 and +1; see `check_labels`")
        if not np.isfinite(self.inputs).all():
            raise InputError("inputs: hold NaN or infinite numbers; drop those rows")
        for name in ("lam", "l2"):
            value = getattr(self, name)
            if value is not None and not (np.shape(value) == (count,) and (np.asarray(value) >= 0).all()):
                raise InputError(f"{name}: give one weight a problem, {count} of 0 or more")
        if not 0 < self.radius < math.inf:
            raise InputError(f"radius: {self.radius} is not above 0; 10 is usual for standardised features")

    @property
    def count(self) -> int:
        """P."""
        return len(self.costs)

    @property
    def width(self) -> int:
        """d."""
        return int(self.inputs.shape[-1])


@dataclass(frozen=True)
class Solution:
    """What a solver found for each problem.

    Args:
        weights: [P, d] of the iterate with the smallest objective; of the stochastic solver the average.
        biases: [P].
        objective: [P] of it, over all examples.
        average_weights: [P, d] mean of the iterates, weighted by their steps: what the rate is proven for.
        average_biases: [P].
        average_objective: [P].
        adversary: [P, J] weights of the costs: of the last worst one, or the stochastic adversary's mean.
    """

    weights: Array
    biases: Array
    objective: Array
    average_weights: Array
    average_biases: Array
    average_objective: Array
    adversary: Array


class _State:
    """The iterates and what both solvers compute of them."""

    def __init__(self, problems: Problems, start: tuple[Array, Array] | None) -> None:
        self.problems, self.stack = problems, CostStack(problems.costs)
        shape = (problems.count, problems.width)
        self.w = np.zeros(shape) if start is None else np.array(start[0], np.float64)
        self.b = np.zeros(shape[0]) if start is None else np.array(start[1], np.float64)
        self.average_w, self.average_b, self.total = np.zeros(shape), np.zeros(shape[0]), np.zeros(shape[0])
        self.l2 = np.zeros(shape[0]) if problems.l2 is None else np.asarray(problems.l2, np.float64)

    def scores(self, w: Array, b: Array) -> Array:
        """s [P, n]."""
        # One matrix-vector product a problem, not one matrix product: its rounding does not depend on the other problems.
        found: Array = np.matmul(self.problems.inputs, w[:, :, None])[..., 0] + b[:, None]
        return found

    def values(self, w: Array, b: Array) -> tuple[Array, Array, Array]:
        """Regularised risks [P, J], scores [P, n] and shifts [P, J]."""
        scores, shifts = self.scores(w, b), self.stack.shifts(w)
        y = self.problems.y
        risks = np.stack(
            [np.maximum(0, 1 - y * (scores + shifts[:, j, None])).mean(1) for j in range(self.stack.count)], axis=1
        )
        return risks + self.problems.lam[:, None] * shifts + 0.5 * (self.l2 * (w**2).sum(1))[:, None], scores, shifts

    def objective(self, w: Array, b: Array) -> Array:
        """Worst regularised risk [P]."""
        found: Array = self.values(w, b)[0].max(1)
        return found

    def move(self, gradient_w: Array, gradient_b: Array, step: Array) -> None:
        """Step, project, and add to the average."""
        self.w = self.w - step[:, None] * gradient_w
        self.b = self.b - step * gradient_b
        radius = self.problems.radius
        length = np.linalg.norm(self.w, axis=1, keepdims=True)
        self.w *= np.minimum(1, radius / np.maximum(length, 1e-300))
        self.b = np.clip(self.b, -radius, radius)

    def average(self, step: Array, weight: Array) -> None:
        """Add the iterate to the running mean, with a weight [P]."""
        self.total = self.total + weight
        share = weight / self.total
        self.average_w += share[:, None] * (self.w - self.average_w)
        self.average_b += share * (self.b - self.average_b)


def gradients(problems: Problems, scores: Array, shift: Array, subgradient: Array, w: Array) -> tuple[Array, Array]:
    """Subgradient of each problem's regularised risk at one cost: by w [P, d] and by b [P].

    With A the examples of positive hinge: g_w = -(1/n) sum_A y x + (lam - (1/n) sum_A y) u v*, g_b = -(1/n) sum_A y.

    Args:
        problems: P of them.
        scores: [P, n].
        shift: [P] of the cost.
        subgradient: [P, d] of the shift by w, u v*.
        w: [P, d].

    Source: derived (Danskin's theorem: the worst cost's subgradient is one of the maximum).
    """
    y = problems.y
    active = np.where(1 - y * (scores + shift[:, None]) > 0, y, 0.0) / scores.shape[1]
    pulled = np.matmul(active[:, None], problems.inputs)[:, 0]
    net = active.sum(1)
    found = -pulled + (problems.lam - net)[:, None] * subgradient
    if problems.l2 is not None:
        found = found + problems.l2[:, None] * w
    return found, -net


def full_batch(
    problems: Problems, steps: int = 600, start: tuple[Array, Array] | None = None, reach: float | None = None
) -> Solution:
    """Projected subgradient steps against the worst cost of each iterate, of length reach / (G sqrt t).

    Args:
        problems: P of them, solved side by side.
        steps: T.
        start: (w [P, d], b [P]); None starts at 0.
        reach: about how far the optimum is; None takes 0.15 of the radius.

    Raises:
        InputError: for less than one step.

    Source: the abstract's full-batch algorithm; step and subgradient derived.
    """
    if steps < 1:
        raise InputError(f"steps: {steps} is too few; give 1 or more")
    state, reach = _State(problems, start), _REACH * problems.radius if reach is None else reach
    rows = np.arange(problems.count)
    largest = np.full(problems.count, 1e-12)
    best = np.full(problems.count, np.inf)
    best_w, best_b = state.w.copy(), state.b.copy()
    adversary = np.zeros((problems.count, state.stack.count))
    for t in range(1, steps + 1):
        values, scores, shifts = state.values(state.w, state.b)
        worst = values.argmax(1)
        better = values[rows, worst] < best
        best = np.where(better, values[rows, worst], best)
        best_w[better], best_b[better] = state.w[better], state.b[better]
        adversary = np.eye(state.stack.count)[worst]
        slopes = state.stack.gradients(state.w)[rows, worst]
        g_w, g_b = gradients(problems, scores, shifts[rows, worst], slopes, state.w)
        largest = np.maximum(largest, np.sqrt((g_w**2).sum(1) + g_b**2))
        step = reach / (largest * math.sqrt(t))
        state.average(step, step)
        state.move(g_w, g_b, step)
    final = state.objective(state.w, state.b)
    better = final < best
    best_w[better], best_b[better] = state.w[better], state.b[better]
    mean = state.objective(state.average_w, state.average_b)
    return Solution(best_w, best_b, np.minimum(final, best), state.average_w, state.average_b, mean, adversary)


def stochastic(
    problems: Problems,
    steps: int = 3000,
    batch_size: int = 16,
    seeds: Sequence[int] | None = None,
    start: tuple[Array, Array] | None = None,
    reach: float | None = None,
) -> Solution:
    """Minibatch steps against an adversary who keeps multiplicative weights over the costs; returns averages.

    Args:
        problems: P of them.
        steps: T.
        batch_size: examples of a step, drawn with replacement.
        seeds: [P] of the drawing; None numbers the problems. A problem's result does not depend on the others'.
        start: (w, b); None starts at 0.
        reach: see `full_batch`.

    Raises:
        InputError: for less than one step or example.

    Source: the abstract's stochastic algorithm; rates and the adversary's step size derived.
    """
    if steps < 1 or batch_size < 1:
        raise InputError(f"steps: {steps} and batch_size: {batch_size}; give 1 or more of each")
    state, reach = _State(problems, start), _REACH * problems.radius if reach is None else reach
    count, costs, n = problems.count, state.stack.count, problems.inputs.shape[-2]
    chosen = range(count) if seeds is None else seeds
    rows = np.stack([np.random.default_rng([seed, 41]).integers(0, n, (steps, batch_size)) for seed in chosen])
    problem = np.arange(count)[:, None]
    lam = problems.lam[:, None]
    losses_so_far, adversary = np.zeros((count, costs)), np.zeros((count, costs))
    largest, spread = np.full(count, 1e-12), np.full(count, 1e-12)
    for t in range(1, steps + 1):
        part = rows[:, t - 1]
        x = problems.inputs[part] if problems.inputs.ndim == 2 else problems.inputs[problem, part]  # [P, m, d]
        y = problems.y[part] if problems.y.ndim == 1 else problems.y[problem, part]
        rate = np.sqrt(math.log(max(2, costs)) / t) / spread
        exponent = rate[:, None] * losses_so_far
        p = np.exp(exponent - exponent.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        scores = np.matmul(x, state.w[:, :, None])[..., 0] + state.b[:, None]
        shifts, slopes = state.stack.shifts(state.w), state.stack.gradients(state.w)
        margins = 1 - y[:, None] * (scores[:, None] + shifts[:, :, None])  # [P, J, m]
        active = np.where(margins > 0, y[:, None], 0.0) / batch_size
        mixed = (p[:, :, None] * active).sum(1)  # [P, m]
        pull = p * (lam - active.sum(2))
        g_w = -np.matmul(mixed[:, None], x)[:, 0] + np.matmul(pull[:, None], slopes)[:, 0]
        g_w += state.l2[:, None] * state.w
        g_b = -mixed.sum(1)
        losses = np.maximum(0, margins).mean(2) + lam * shifts
        losses_so_far += losses
        spread = np.maximum(spread, losses.max(1) - losses.min(1))
        adversary += (p - adversary) / t
        largest = np.maximum(largest, np.sqrt((g_w**2).sum(1) + g_b**2))
        step = reach / (largest * math.sqrt(t))
        state.average(step, step)
        state.move(g_w, g_b, step)
    mean = state.objective(state.average_w, state.average_b)
    averaged = state.average_w, state.average_b, mean
    return Solution(*averaged, *averaged, adversary)
