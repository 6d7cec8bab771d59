"""Products with the Hessian of a mean loss, and its top eigenvectors by ARPACK's Lanczos iterations (scipy)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from lightning_modules.dynamics.flat import LossesAt
from lightning_modules.errors import InputError

Product = Callable[[Tensor], Tensor]
"""Maps a vector [D] to a matrix times it [D]."""

_DENSE = 24
"""A matrix of so few rows is computed whole: Lanczos needs room for its own basis."""


class HessianProduct:
    """v -> H v, H the Hessian at theta of the MEAN loss over all examples.

    The gradient's graph is built once and asked for each product, two backward passes' worth; of several chunks it is built
    anew each time, so that memory holds one chunk's.

    Args:
        losses: of each chunk of examples, [n_i].
        theta: [D].

    Raises:
        InputError: a loss is not finite.
    """

    def __init__(self, losses: Sequence[LossesAt], theta: Tensor) -> None:
        self._losses, self.products = list(losses), 0
        self._theta = theta.detach().clone().requires_grad_()
        with torch.no_grad():
            values = [chunk(self._theta) for chunk in self._losses]
        self._count = sum(len(value) for value in values)
        self.loss = float(torch.stack([value.double().sum() for value in values]).sum()) / self._count
        if not np.isfinite(self.loss):
            raise InputError(f"loss: is {self.loss}; curvature needs finite losses, lower the learning rate")
        self._graph = self._gradient(self._losses[0]) if len(self._losses) == 1 else None

    def _gradient(self, losses: LossesAt) -> Tensor:
        (found,) = torch.autograd.grad(losses(self._theta).sum() / self._count, self._theta, create_graph=True)
        return found

    def gradient(self) -> Tensor:
        """Of the mean loss, [D]."""
        if self._graph is not None:
            return self._graph.detach()
        return torch.stack([self._gradient(chunk).detach() for chunk in self._losses]).sum(0)

    def __call__(self, vector: Tensor) -> Tensor:
        """H v [D]."""
        self.products += 1
        vector = vector.to(self._theta)
        if self._graph is not None:
            return _product(self._graph, self._theta, vector, keep=True)
        return torch.stack([_product(self._gradient(c), self._theta, vector, False) for c in self._losses]).sum(0)


def _product(gradient: Tensor, theta: Tensor, vector: Tensor, keep: bool) -> Tensor:
    if not gradient.requires_grad:  # a linear loss
        return torch.zeros_like(theta)
    (found,) = torch.autograd.grad(gradient, theta, vector, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(theta) if found is None else found


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvectors of a symmetric matrix.

    Args:
        values: [k], the largest first (by value, not by magnitude).
        vectors: [k, D], of length 1.
        residuals: [k], |H v - value v|.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


def top_eigenpairs(
    product: Product,
    size: int,
    k: int = 1,
    start: Tensor | None = None,
    tolerance: float = 1e-4,
    iterations: int = 100,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Eigenpairs:
    """The k algebraically largest eigenvalues of a symmetric matrix, from products with it alone.

    Args:
        product: with the matrix.
        size: D.
        k: how many.
        start: [D], near the first eigenvector, e.g. that of the last step; None: random.
        tolerance: relative, of the eigenvalues.
        iterations: restarts of the iteration at most; what it has then is returned, with its residual.
        device: of vectors.
        dtype: of vectors.
        seed: of a random start.

    Raises:
        InputError: k is below 1 or above D.
    """
    if not 1 <= k <= size:
        raise InputError(f"k: is {k}; give 1 to {size}, the number of parameters")

    def numpy_product(vector: np.ndarray) -> np.ndarray:
        found: np.ndarray = product(torch.from_numpy(vector.reshape(-1)).to(device, dtype)).double().cpu().numpy()
        return found

    if size <= max(_DENSE, k + 1):
        matrix = np.stack([numpy_product(row) for row in np.eye(size)])
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    else:
        operator = LinearOperator((size, size), matvec=numpy_product, dtype=np.float64)
        drawn = np.random.default_rng(seed).standard_normal(size)
        first = drawn if start is None else start.double().cpu().numpy()
        room = min(size, max(2 * k + 1, 20))
        try:
            values, vectors = eigsh(operator, k, which="LA", v0=first, tol=tolerance, ncv=room, maxiter=iterations)
        except ArpackNoConvergence:
            # Without room to converge: a longer basis, and no restarts, gives the best there is.
            values, vectors = eigsh(operator, k, which="LA", v0=first, tol=0.1, ncv=min(size, 3 * room))
    order = np.argsort(values)[::-1][:k]
    rows = torch.from_numpy(np.ascontiguousarray(vectors[:, order].T)).to(device, dtype)
    found = torch.from_numpy(values[order].copy()).to(device, dtype)
    residuals = torch.stack([(product(v) - value * v).norm() for value, v in zip(found, rows, strict=True)])
    return Eigenpairs(found, rows, residuals)
