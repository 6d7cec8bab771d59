"""Sharpness: the largest eigenvalue of the Hessian of the mean loss, beside the step size that it allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_modules.dynamics.curvature import HessianProduct, Product, top_eigenpairs
from lightning_modules.dynamics.flat import LossesAt
from lightning_modules.errors import InputError

METHODS = ("lanczos", "power")


@dataclass(frozen=True)
class SharpnessResult:
    """The top eigenpair of a Hessian.

    Args:
        value: the algebraically largest eigenvalue: negative where the loss curves down in every direction.
        vector: its eigenvector [D], of length 1.
        residual: |H v - value v|.
        products: with the Hessian that it took.
    """

    value: float
    vector: Tensor
    residual: float
    products: int


def sharpness(
    losses: LossesAt | Sequence[LossesAt],
    theta: Tensor,
    method: Literal["lanczos", "power"] = "lanczos",
    start: Tensor | None = None,
    tolerance: float = 1e-4,
    iterations: int = 1000,
    seed: int = 0,
) -> SharpnessResult:
    """Largest eigenvalue of the Hessian of the MEAN loss, by value and not by magnitude.

    Args:
        losses: of all examples, or of each chunk of them, [n_i].
        theta: parameters [D].
        method: "lanczos" (ARPACK), or "power" iteration: simple, slow where two eigenvalues are close. It finds the eigenvalue
            of largest magnitude, which early in training may be a negative one; the iteration then goes on with H shifted by it.
        start: [D], e.g. the last step's vector; None: random.
        tolerance: relative, of the eigenvalue (lanczos) or of the residual (power).
        iterations: at most; what it has then is returned, with its residual.
        seed: of a random start.

    Raises:
        InputError: an unknown method, or a loss that is not finite.
    """
    if method not in METHODS:
        raise InputError(f"method: unknown {method!r}; choose from {', '.join(METHODS)}")
    product = HessianProduct([losses] if callable(losses) else losses, theta)
    if method == "lanczos":
        found = top_eigenpairs(
            product, len(theta), 1, start, tolerance, iterations, theta.device, theta.dtype, seed=seed
        )
        return SharpnessResult(float(found.values[0]), found.vectors[0], float(found.residuals[0]), product.products)
    value, vector, residual = _power(product, theta, start, 0.0, tolerance, iterations, seed)
    if value < 0:  # the most negative one: H - value is positive, and its largest is H's
        value, vector, residual = _power(product, theta, None, -value, tolerance, iterations, seed)
    return SharpnessResult(value, vector, residual, product.products)


def _power(
    product: Product, theta: Tensor, start: Tensor | None, shift: float, tolerance: float, iterations: int, seed: int
) -> tuple[float, Tensor, float]:
    if start is None:
        drawn = torch.randn(len(theta), generator=torch.Generator().manual_seed(seed), dtype=torch.double)
        start = drawn.to(theta)
    vector = start / start.norm()
    value, residual = math.nan, math.inf
    for _ in range(iterations):
        image = product(vector)
        value = float(torch.dot(vector, image))
        residual = float((image - value * vector).norm())
        if residual <= tolerance * max(abs(value), 1e-30):
            break
        image = image + shift * vector
        if not float(image.norm()):  # the whole Hessian is zero
            break
        vector = image / image.norm()
    return value, vector, residual


def dense_hessian(losses: LossesAt, theta: Tensor) -> Tensor:
    """The whole Hessian of the mean loss [D, D], for a small D: what the products are checked against."""
    mean: Callable[[Tensor], Tensor] = lambda at: losses(at).mean()  # noqa: E731
    found: Tensor = torch.func.hessian(mean)(theta)
    return found


def stability_threshold(optimizer: torch.optim.Optimizer | None) -> float:
    """Sharpness above which an optimizer's steps on a quadratic grow; NaN for others than SGD, and several learning rates.

    2/lr of gradient descent, (2 + 2 beta)/lr of heavy ball, (2 + 2 beta)/(lr (1 + 2 beta)) of Nesterov's momentum. Dampening
    makes the step size lr (1 - dampening); weight decay adds to the curvature, so it is taken off.

    Source: arXiv 2103.00065, appendix B (from memory).
    """
    if type(optimizer) is not torch.optim.SGD or not optimizer.param_groups:
        return math.nan
    kinds = {tuple(float(g[key]) for key in _SETTINGS) for g in optimizer.param_groups}
    if len(kinds) != 1 or any(group["maximize"] for group in optimizer.param_groups):
        return math.nan
    lr, momentum, dampening, nesterov, decay = kinds.pop()
    rate: Any = lr * (1 - dampening if momentum else 1) * (1 + 2 * momentum if nesterov else 1)
    return float((2 + 2 * momentum) / rate - decay) if rate > 0 else math.nan


_SETTINGS = ("lr", "momentum", "dampening", "nesterov", "weight_decay")
