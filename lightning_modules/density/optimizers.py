"""Normalised gradient descent and Newton's method as torch optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_modules.errors import InputError


def _check_lr(lr: float) -> None:
    if not lr > 0:
        raise InputError(f"lr: {lr} is not above 0; give a step size like 0.1")


class NormalizedGradientDescent(Optimizer):
    """w <- w - lr g / ||g||_2, one norm over all parameters of all groups together; every step has the length lr.

    The direction is the same for L and log L, so minimise log L, which neither under- nor overflows. Gradients are divided by
    their largest entry before the norm is taken, so that squares do neither. With several workers gradients must be
    reduced before the step, as DDP does: a mean of normalised gradients is another direction.

    Args:
        params: parameters, or groups of them.
        lr: length of a step.
        eps: what a largest entry and a norm are at least; a gradient of zero then makes no step.

    Raises:
        InputError: for an lr or eps that is not above 0.

    Source: arXiv 2110.11271, normalised gradient descent (from memory).
    """

    def __init__(self, params: Any, lr: float, eps: float = 1e-30) -> None:
        _check_lr(lr)
        if not eps > 0:
            raise InputError(f"eps: {eps} is not above 0; give one like 1e-30")
        super().__init__(params, {"lr": lr})
        self._eps = eps

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        owned = [p for group in groups for p in group]
        if not owned:
            return loss
        gradients = [p.grad for p in owned]
        top = torch.stack(list(torch._foreach_norm(gradients, torch.inf))).max().clamp(min=self._eps)
        scaled = torch._foreach_div(gradients, top)
        norm = torch.stack(list(torch._foreach_norm(scaled))).norm().clamp(min=self._eps)
        torch._foreach_div_(scaled, norm)
        start = 0
        for members, group in zip(groups, self.param_groups, strict=True):
            part = scaled[start : start + len(members)]
            start += len(members)
            torch._foreach_add_(members, part, alpha=-group["lr"])
        return loss


class NewtonDescent(Optimizer):
    """tau <- tau - lr H^-1 grad L over all parameters as one vector; for exponential families, where H is a few numbers.

    Args:
        params: parameters, flattened in their order.
        lr: 1 is Newton's full step.
        hessian: gives H / L [k, k] at the parameters of the last loss, whose gradient was that of log L.

    Raises:
        InputError: for an lr that is not above 0.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, hessian: Callable[[], Tensor]) -> None:
        _check_lr(lr)
        super().__init__(params, {"lr": lr})
        self._hessian = hessian

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        owned = [p for group in self.param_groups for p in group["params"]]
        if any(p.grad is None for p in owned):
            return loss
        gradient = torch.cat([p.grad.flatten() for p in owned])
        direction, _ = torch.linalg.solve_ex(self._hessian().double(), gradient.double())
        for p, part in zip(owned, direction.split([p.numel() for p in owned]), strict=True):
            p.sub_(part.view_as(p).to(p.dtype), alpha=self.param_groups[0]["lr"])
        return loss
