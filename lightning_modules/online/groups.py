"""Group risks R_1..R_E over one parameter vector, and the sets it may lie in.

Every kind of group has `n_groups`, `dimension` (of b), `origin` (the first move), `value(b)`, `grad(b)` and
`minimise(weights, linear, domain, start)`; players need no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike

from lightning_modules.errors import InputError
from lightning_modules.online.extrapolation import Array

if TYPE_CHECKING:
    import torch

    from lightning_modules.data.environments import Dataset

_BLOCK = 1 << 22  # numbers in the matrices of one block of minimisations: 32 MiB
_TIE = 1e-12  # sums of weights carry rounding of this relative size: less than that is zero


@dataclass(frozen=True)
class Domain:
    """Where parameters may lie: a box [-radius, radius]^d, or the ball |b| <= radius.

    Args:
        kind: "box" or "ball".
        radius: above 0.
    """

    kind: str
    radius: float

    def __post_init__(self) -> None:
        if self.kind not in ("box", "ball"):
            raise InputError(f"domain: unknown kind {self.kind!r}; choose box or ball")
        if not (math.isfinite(self.radius) and self.radius > 0):
            raise InputError(f"domain: radius {self.radius} is not a number above 0")

    def project(self, b: Array) -> Array:
        """Return the points of the domain nearest to b [..., d]."""
        if self.kind == "box":
            return b.clip(-self.radius, self.radius)
        norm = np.linalg.norm(b, axis=-1, keepdims=True)
        inside: Array = b * np.minimum(1, self.radius / np.maximum(norm, 1e-300))
        return inside


class Groups(Protocol):
    """What players need of group risks; S games side by side."""

    @property
    def n_groups(self) -> int:
        """E."""

    @property
    def dimension(self) -> int:
        """Length of b."""

    @property
    def origin(self) -> Array:
        """The first move, [d]."""

    def value(self, b: Array) -> Array:
        """Compute the risks [S, E] at b [S, d]."""

    def grad(self, b: Array) -> Array:
        """Compute the gradients [S, E, d] at b [S, d]."""

    def minimise(
        self,
        weights: Array,
        linear: Array | None = None,
        domain: Domain | None = None,
        start: Array | None = None,
    ) -> Array:
        """Minimise weights[s] . R(b) + linear[s] . b over the domain: weights [S, E], linear [S, d], result [S, d]."""


@dataclass(frozen=True)
class QuadraticGroups:
    """R_e(b) = b'A_e b / 2 + c_e . b + k_e; with several outputs b is a matrix [d, m] (flattened) with A_e per column.

    Args:
        A: [E, d, d] symmetric.
        c: [E, d m], flattened with the outputs fastest.
        k: [E].
        sizes: [E] number of examples behind each group, used by pooled ERM; ones where there are none.
        outputs: m.
    """

    A: Array
    c: Array
    k: Array
    sizes: Array = field(default_factory=lambda: np.ones(0))
    outputs: int = 1

    def __post_init__(self) -> None:
        groups, d = self.A.shape[0], self.A.shape[-1]
        if self.A.shape != (groups, d, d) or self.c.shape != (groups, d * self.outputs) or self.k.shape != (groups,):
            raise InputError(
                f"quadratic groups: A {self.A.shape}, c {self.c.shape}, k {self.k.shape} do not fit; "
                "give [E, d, d], [E, d m] and [E]"
            )
        if not np.allclose(self.A, self.A.swapaxes(1, 2), rtol=1e-9, atol=1e-12):
            raise InputError("quadratic groups: a matrix of A is not symmetric; give (A + A') / 2")
        if not len(self.sizes):
            object.__setattr__(self, "sizes", np.ones(groups))

    @classmethod
    def from_data(cls, X: ArrayLike, y: ArrayLike, groups: ArrayLike, ridge: float = 0.0) -> QuadraticGroups:
        """Build the ridge least-squares risks R_e(b) = mean over group e of |y - b'x|^2 / 2, plus ridge |b|^2 / 2.

        Args:
            X: [n, d]; see `standardised` for scaling and an intercept.
            y: [n], or [n, m] for m outputs.
            groups: [n] group names or numbers; groups come sorted.
            ridge: 0 or more.

        Raises:
            InputError: lengths that differ, values that are not finite, or ridge < 0.
        """
        X, targets, names = np.asarray(X, np.float64), np.asarray(y, np.float64), np.asarray(groups)
        targets = targets[:, None] if targets.ndim == 1 else targets
        if X.ndim != 2 or targets.ndim != 2 or not len(X) == len(targets) == len(names) > 0:
            raise InputError(f"X {X.shape}, y {targets.shape}, groups {names.shape}: give one row an example in each")
        if not (np.isfinite(X).all() and np.isfinite(targets).all()):
            raise InputError("X or y: has NaN or infinite numbers; clean or drop those rows")
        if not ridge >= 0:
            raise InputError(f"ridge: {ridge} is negative; give 0 or more")
        _, codes, sizes = np.unique(names, return_inverse=True, return_counts=True)
        parts = [(X[codes == e], targets[codes == e]) for e in range(len(sizes))]
        return cls(
            np.stack([x.T @ x / len(x) for x, _ in parts]) + ridge * np.eye(X.shape[1]),
            np.stack([-(x.T @ t).ravel() / len(x) for x, t in parts]),
            np.array([(t**2).sum() / (2 * len(t)) for _, t in parts]),
            sizes.astype(np.float64),
            targets.shape[1],
        )

    @classmethod
    def from_dataset(cls, dataset: Dataset, ridge: float) -> QuadraticGroups:
        """Build ridge least squares on a dataset's environments: standardised features, +-1 or one-hot labels."""
        inputs = np.concatenate([e.inputs.reshape(len(e), -1) for e in dataset.environments])
        labels = np.concatenate([e.labels for e in dataset.environments])
        codes = np.repeat(np.arange(len(dataset.environments)), [len(e) for e in dataset.environments])
        targets = 2.0 * labels - 1 if len(dataset.classes) == 2 else np.eye(len(dataset.classes))[labels]
        return cls.from_data(standardised(inputs), targets, codes, ridge)

    @property
    def n_groups(self) -> int:
        """E."""
        return len(self.A)

    @property
    def dimension(self) -> int:
        """Length of b, d m."""
        return int(self.c.shape[1])

    @property
    def origin(self) -> Array:
        """The first move, b = 0."""
        return np.zeros(self.dimension)

    def value(self, b: Array) -> Array:
        """Compute the risks [..., E] at b [..., d m]."""
        risks: Array = np.einsum("...ed,...d->...e", self._curved(b) / 2 + self.c, b) + self.k
        return risks

    def grad(self, b: Array) -> Array:
        """Compute the gradients [..., E, d m] at b [..., d m]."""
        return self._curved(b) + self.c

    def _curved(self, b: Array) -> Array:
        """A_e b for every group, [..., E, d m]."""
        if self.dimension == 1:
            return b[..., None, :] * self.A[:, :, 0]
        matrix = b.reshape(*b.shape[:-1], 1, -1, self.outputs)
        return (self.A @ matrix).reshape(*b.shape[:-1], self.n_groups, self.dimension)

    def smallest_curvature(self, weights: Array) -> float:
        """Smallest eigenvalue over the Hessians of the mixtures weights [N, E]."""
        return float(np.linalg.eigvalsh(np.tensordot(weights, self.A, 1)).min())

    def minimise(
        self,
        weights: Array,
        linear: Array | None = None,
        domain: Domain | None = None,
        start: Array | None = None,
    ) -> Array:
        """Minimise weights[s] . R(b) + linear[s] . b exactly, b = 0 where that is constant.

        Exact on an interval, on a ball and everywhere, also for indefinite Hessians (where bounded); in a box of
        several dimensions only for positive definite ones, since the others are NP-hard.

        Args:
            weights: [S, E], any sign.
            linear: [S, d m].
            domain: None for all of R^d.
            start: without effect.

        Raises:
            InputError: unbounded below; or indefinite over a box of several dimensions.
        """
        d, m = self.A.shape[-1], self.outputs
        rows = max(1, _BLOCK // (d * d))
        if len(weights) > rows:
            cuts = range(rows, len(weights), rows)
            linears = [None] * (len(cuts) + 1) if linear is None else np.split(linear, cuts)
            return np.concatenate(
                [self.minimise(w, v, domain) for w, v in zip(np.split(weights, cuts), linears, strict=True)]
            )
        A = np.tensordot(weights, self.A, 1)
        c = weights @ self.c
        scale_A = np.abs(weights) @ np.abs(self.A).max((1, 2))
        scale_c = np.abs(weights) @ np.abs(self.c).max(1)
        if linear is not None:
            c = c + linear
            scale_c = scale_c + np.abs(linear).max(1)
        c = np.where(np.abs(c) <= _TIE * scale_c[:, None], 0, c).reshape(-1, d, m)
        A = np.where(np.abs(A) <= _TIE * scale_A[:, None, None], 0, A)
        if domain is None:
            b = _everywhere(A, c)
        elif d == 1 and (domain.kind == "box" or m == 1):
            b = _on_interval(A, c, domain.radius)
        elif domain.kind == "ball":
            b = _in_ball(A, c, domain.radius)
        else:
            b = _in_box(A, c, domain)
        return b.reshape(-1, d * m)


def standardised(inputs: ArrayLike) -> Array:
    """Scale each feature of [n, d] to mean 0 and variance 1 (a constant one to 0), and append a column of ones."""
    features = np.asarray(inputs, dtype=np.float64)
    spread = features.std(0)
    scaled = (features - features.mean(0)) / np.where(spread > 1e-12, spread, 1)
    return np.concatenate([scaled, np.ones((len(features), 1))], axis=1)


def _everywhere(A: Array, c: Array) -> Array:
    """Solve A b = -c after making sure that this is a minimum and no saddle."""
    try:
        np.linalg.cholesky(A)
    except np.linalg.LinAlgError as error:
        raise InputError(
            "domain: none is given, and the weighted risk is unbounded below (its Hessian is not positive definite); "
            "give a bounded domain, a larger ridge or a smaller alpha"
        ) from error
    return np.asarray(-np.linalg.solve(A, c), dtype=np.float64)


def _on_interval(A: Array, c: Array, radius: float) -> Array:
    """A vertex of the parabola where it opens upward, else the better end; 0 where the function is constant."""
    upward = A > 0
    inner = (-c / np.where(upward, A, 1)).clip(-radius, radius)
    end = -radius * np.sign(c)
    end = np.where((end == 0) & (A < 0), radius, end)
    return np.where(upward, inner, end)


def _in_ball(A: Array, c: Array, radius: float) -> Array:
    """The trust-region problem: b = -(A + mu)^-1 c with the smallest mu >= 0 that makes A + mu semidefinite, |b| <= r.

    Found by bisection on mu in the eigenbasis; exact whatever the signs of the eigenvalues (More and Sorensen, 1983).
    """
    values, vectors = np.linalg.eigh(A)
    c = vectors.swapaxes(1, 2) @ c
    squares = (c**2).sum(2)

    def solve(mu: Array) -> Array:
        shifted = values + mu[:, None]
        return np.where(shifted > 0, 1 / np.where(shifted > 0, shifted, 1), 0)

    low = np.maximum(0, -values[:, 0])
    high = low + np.sqrt(squares.sum(1)) / radius + 1e-300
    with np.errstate(divide="ignore", invalid="ignore"):
        at_low = np.nansum(np.where(squares > 0, squares / (values + low[:, None]) ** 2, 0), 1)
    boundary = at_low > radius**2
    for _ in range(100):
        middle = (low + high) / 2
        too_long = (squares * solve(middle) ** 2).sum(1) > radius**2
        low = np.where(boundary & too_long, middle, low)
        high = np.where(boundary & ~too_long, middle, high)
    b = -c * solve(np.where(boundary, high, low))[:, :, None]
    # The hard case: c has (nearly) no part along the most negative curvature, and either way along it leads down to the
    # border. Where it has, this adds no more than what the bisection rounded off.
    missing = np.maximum(radius**2 - (b**2).sum((1, 2)), 0)
    sign = np.where(b[:, 0, 0] < 0, -1, 1)
    b[:, 0, 0] = np.where(values[:, 0] < 0, sign * np.sqrt(b[:, 0, 0] ** 2 + missing), b[:, 0, 0])
    return vectors @ b


def _in_box(A: Array, c: Array, domain: Domain) -> Array:
    """Accelerated projected gradient for positive definite A."""
    eigenvalues = np.linalg.eigvalsh(A)
    if eigenvalues.min() <= 0:
        raise InputError(
            "domain: a quadratic with an indefinite Hessian over a box of several dimensions is NP-hard to minimise; "
            "give a ball, or see MaxCutExtrapolation"
        )
    low, high = eigenvalues[:, 0, None, None], eigenvalues[:, -1, None, None]
    momentum = (np.sqrt(high) - np.sqrt(low)) / (np.sqrt(high) + np.sqrt(low))
    b = ahead = np.zeros_like(c)
    for _ in range(100_000):
        following = domain.project(ahead - (A @ ahead + c) / high)
        ahead = following + momentum * (following - b)
        moved = np.abs(following - b).max()
        b = following
        if moved <= 1e-14 * domain.radius:
            break
    return b


class ModelGroups:
    """Risks of a network on each of several datasets; b is its parameters in one vector.

    Args:
        module: maps inputs to outputs (of a tuple the last counts); used in evaluation mode, never changed.
        datasets: (inputs [n, ...], targets [n, ...]) of each group.
        loss: (outputs, targets) to the mean loss; cross-entropy by default.
        steps: Adam steps of one minimisation, which starts from the previous round's parameters.
        learning_rate: of Adam.
        l2: adds l2 |b|^2 / 2 to each risk.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 8)[:, None]
        >>> ModelGroups(torch.nn.Linear(1, 2), [(x, (x[:, 0] > 0).long())]).dimension
        4
    """

    def __init__(
        self,
        module: torch.nn.Module,
        datasets: Sequence[tuple[torch.Tensor, torch.Tensor]],
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        steps: int = 200,
        learning_rate: float = 1e-2,
        l2: float = 0.0,
    ) -> None:
        import copy

        from torch.nn.functional import cross_entropy
        from torch.nn.utils import parameters_to_vector

        if not datasets:
            raise InputError("datasets: is empty; give one (inputs, targets) a group")
        self._module = copy.deepcopy(module).eval()
        self._datasets = list(datasets)
        self._loss = loss or cross_entropy
        self._steps, self._learning_rate, self._l2 = steps, learning_rate, l2
        self._names = [(name, p.shape) for name, p in self._module.named_parameters()]
        vector = parameters_to_vector(self._module.parameters()).detach()
        self._dtype = vector.dtype
        self.origin = vector.double().numpy()
        self.dimension = len(self.origin)
        self.n_groups = len(self._datasets)

    def value(self, b: Array) -> Array:
        """Compute the risks [..., E] at b [..., d]."""
        import torch

        with torch.no_grad():
            return self._risks(self._tensor(b)).double().numpy().reshape(*b.shape[:-1], self.n_groups)

    def grad(self, b: Array) -> Array:
        """Compute the gradients [..., E, d] at b [..., d]."""
        import torch

        flat = self._tensor(b).requires_grad_()
        risks = self._risks(flat)
        # games do not touch each other, so the gradient of the sum over games holds each game's own
        parts = [torch.autograd.grad(risks[:, e].sum(), flat, retain_graph=True)[0] for e in range(self.n_groups)]
        return torch.stack(parts, 1).double().numpy().reshape(*b.shape[:-1], self.n_groups, self.dimension)

    def minimise(
        self,
        weights: Array,
        linear: Array | None = None,
        domain: Domain | None = None,
        start: Array | None = None,
    ) -> Array:
        """Descend weights[s] . R(b) + linear[s] . b from `start` (else the module's own parameters) by projected Adam.

        Args:
            weights: [S, E] of positive sum; the objective is divided by that sum, so one learning rate fits all rounds.
            linear: [S, d].
            domain: needed as soon as a weight is negative.
            start: [S, d].

        Raises:
            InputError: a negative weight and no domain, since the objective may be unbounded below.
        """
        import torch

        if domain is None and weights.min() < 0:
            raise InputError("domain: a group has a negative weight, so the objective may be unbounded; give a domain")
        total = np.maximum(weights.sum(1, keepdims=True), 1e-12)
        w = torch.as_tensor(weights / total, dtype=self._dtype)
        v = None if linear is None else torch.as_tensor(linear / total, dtype=self._dtype)
        first = np.broadcast_to(self.origin, (len(weights), self.dimension)) if start is None else start
        b = self._tensor(first).clone().requires_grad_()
        mean, square = torch.zeros_like(b), torch.zeros_like(b)
        for t in range(1, self._steps + 1):  # Adam by hand: torch.optim takes seconds to import
            objective = (w * self._risks(b)).sum() + (0 if v is None else (v * b).sum())
            (slope,) = torch.autograd.grad(objective, b)
            mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
            with torch.no_grad():
                b -= self._learning_rate * (mean / (1 - 0.9**t)) / ((square / (1 - 0.999**t)).sqrt() + 1e-8)
                if domain is not None:
                    b.copy_(torch.as_tensor(domain.project(b.numpy(force=True))))
        return b.double().numpy(force=True)

    def _tensor(self, b: Array) -> torch.Tensor:
        import torch

        return torch.as_tensor(np.array(b), dtype=self._dtype).reshape(-1, self.dimension)

    def _risks(self, b: torch.Tensor) -> torch.Tensor:
        """Risks [S, E] at b [S, d], the games mapped over at once."""
        import torch

        def risks(vector: torch.Tensor) -> torch.Tensor:
            pieces = torch.split(vector, [math.prod(shape) for _, shape in self._names])
            named = {name: piece.view(shape) for (name, shape), piece in zip(self._names, pieces, strict=True)}
            losses = []
            for inputs, targets in self._datasets:
                outputs = torch.func.functional_call(self._module, named, (inputs,))
                losses.append(self._loss(outputs[-1] if isinstance(outputs, tuple) else outputs, targets))
            return torch.stack(losses) + self._l2 * (vector @ vector) / 2

        return torch.vmap(risks)(b)
