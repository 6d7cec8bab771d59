"""One deterministic full-batch solver for all linear heads: L-BFGS, then Newton steps by conjugate gradients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Weights to (value, gradient)."""

TOLERANCE = 1e-8
"""Norm of the gradient at which a convex problem counts as solved."""


class SoftmaxRisk:
    """Weighted softmax cross-entropy with a ridge and, where wanted, DARE's penalty, as a convex function of W [d, k].

    value = sum_i w_i CE(softmax(W' x_i), y_i) + sum_j ridge_j ||W_j||^2 / 2 + penalty sum_e KL(1/k || softmax(W' m_e)).

    Args:
        x: [n, d].
        y: [n] class indices.
        weight: [n], usually summing to 1.
        classes: k.
        ridge: weight of the ridge, for all rows of W or for each of them, [d].
        means: [E, d] the points where the penalty wants equal probabilities.
        penalty: its weight.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        weight: Tensor,
        classes: int,
        ridge: float | Tensor,
        means: Tensor | None = None,
        penalty: float = 0.0,
    ) -> None:
        self.x, self.y, self.weight, self.classes, self.penalty = x, y, weight.unsqueeze(1), classes, penalty
        self.means = means if means is not None and penalty else None
        self.ridge = torch.as_tensor(ridge, dtype=x.dtype).expand(x.shape[1]).unsqueeze(1)
        self._target = F.one_hot(y, classes).to(x.dtype)

    def __call__(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Compute value and gradient at w."""
        log_p = (self.x @ w).log_softmax(1)
        value = -(self.weight.squeeze(1) @ log_p.gather(1, self.y.unsqueeze(1)).squeeze(1))
        value = value + (self.ridge * w.square()).sum() / 2
        gradient = self.x.T @ (self.weight * (log_p.exp() - self._target)) + self.ridge * w
        if self.means is not None:
            log_q = (self.means @ w).log_softmax(1)
            value = value + self.penalty * (-log_q.mean(1) - math.log(self.classes)).sum()
            gradient += self.penalty * self.means.T @ (log_q.exp() - 1 / self.classes)
        return value, gradient

    def curvature(self, w: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the product of the Hessian at w with a direction [d, k]."""
        p = (self.x @ w).softmax(1)
        q = (self.means @ w).softmax(1) if self.means is not None else None

        def product(v: Tensor) -> Tensor:
            u = self.x @ v
            result = self.x.T @ (self.weight * p * (u - (p * u).sum(1, keepdim=True))) + self.ridge * v
            if q is not None and self.means is not None:
                u = self.means @ v
                result += self.penalty * self.means.T @ (q * (u - (q * u).sum(1, keepdim=True)))
            return result

        return product


def solve(risk: SoftmaxRisk, start: Tensor | None = None, tolerance: float = TOLERANCE) -> Tensor:
    """Minimise a convex risk until its gradient's norm is below `tolerance`.

    Warns:
        RuntimeWarning: when it cannot be reached, as without a ridge on classes that a plane separates.
    """
    if start is None:
        start = risk.x.new_zeros(risk.x.shape[1], risk.classes)
    w = lbfgs(risk, start)
    # A line search on values stalls where their differences drown in rounding, at a gradient of about 1e-7; Newton's
    # method with conjugate gradients looks at gradients alone and squares what error is left.
    w, norm = _newton(risk, w, tolerance)
    if norm > tolerance:
        warnings.warn(
            f"the solver stopped at a gradient of norm {norm:.1e}, not {tolerance:.0e}; give l2 above 0, or a larger one",
            RuntimeWarning,
            stacklevel=3,
        )
    return w


def lbfgs(objective: Objective, start: Tensor, iterations: int = 2000, tolerance: float = 1e-7) -> Tensor:
    """Minimise by L-BFGS until no entry of the gradient exceeds `tolerance` or values stop falling."""
    from scipy.optimize import minimize

    def flat(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(torch.from_numpy(w).view(start.shape))
        return float(value), gradient.numpy().reshape(-1)

    options = {"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 20, "gtol": tolerance, "ftol": 0.0}
    found = minimize(flat, start.numpy().reshape(-1), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).view(start.shape)


def differentiate(value: Callable[[Tensor], Tensor]) -> Objective:
    """Turn a function of the weights into (value, gradient) by automatic differentiation."""

    def objective(w: Tensor) -> tuple[Tensor, Tensor]:
        w = w.clone().requires_grad_()
        result = value(w)
        (gradient,) = torch.autograd.grad(result, w)
        return result.detach(), gradient

    return objective


def _newton(risk: SoftmaxRisk, w: Tensor, tolerance: float, steps: int = 10) -> tuple[Tensor, float]:
    gradient = risk(w)[1]
    norm = float(gradient.norm())
    for _ in range(steps):
        if norm <= tolerance:
            break
        step = _conjugate_gradients(risk.curvature(w), gradient)
        for shorter in (1.0, 0.5, 0.25, 0.0625):
            trial = w - shorter * step
            trial_gradient = risk(trial)[1]
            if float(trial_gradient.norm()) < norm:
                w, gradient, norm = trial, trial_gradient, float(trial_gradient.norm())
                break
        else:
            break
    return w, norm


def _conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor, iterations: int = 500) -> Tensor:
    """Solve H z = right to a relative residual of 1e-4; H may be singular along directions orthogonal to `right`."""
    z = torch.zeros_like(right)
    residual = right.clone()
    direction = residual.clone()
    square = float(residual.square().sum())
    target = square * 1e-8
    for _ in range(iterations):
        if square <= target:
            break
        image = product(direction)
        curvature = float((direction * image).sum())
        if curvature <= 0:
            break
        alpha = square / curvature
        z += alpha * direction
        residual -= alpha * image
        before, square = square, float(residual.square().sum())
        direction = residual + (square / before) * direction
    return z
