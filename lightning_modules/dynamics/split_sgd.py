"""SGD that takes steps of one size along the coordinates of largest momentum: the part of Adam that opposing signals need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_modules.errors import InputError


class SplitSGD(torch.optim.Optimizer):
    """m <- momentum m + (1 - dampening) g; where |m| > r: -sign_lr sign(m), elsewhere -lr m.

    r is the given quantile of |m|, over all parameters or in each tensor. With quantile 0 every coordinate takes a sign step
    (sign-SGD), with quantile 1 none does (SGD).

    Args:
        params: what is trained.
        lr: step size of the other coordinates.
        sign_lr: length of a step along a coordinate above r.
        momentum: 0 to below 1.
        dampening: of the newest gradient.
        quantile: of |m|, 0 to 1.
        scope: "global" or "tensor".

    Raises:
        InputError: a value out of range.

    Source: arXiv 2311.04163 (from memory).
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.1,
        sign_lr: float = 1e-3,
        momentum: float = 0.9,
        dampening: float = 0.9,
        quantile: float = 0.9,
        scope: Literal["global", "tensor"] = "global",
    ) -> None:
        for name, value, below in (
            ("lr", lr, math.inf),
            ("sign_lr", sign_lr, math.inf),
            ("momentum", momentum, 1.0),
            ("dampening", dampening, 1.0),
        ):
            if not 0 <= value < below:
                raise InputError(f"{name}: is {value}; give 0 or more" + (", and less than 1" if below == 1 else ""))
        if not 0 <= quantile <= 1:
            raise InputError(f"quantile: is {quantile}; give 0 to 1")
        if scope not in ("global", "tensor"):
            raise InputError(f"scope: unknown {scope!r}; choose from global, tensor")
        self.scope = scope
        settings = {"lr": lr, "sign_lr": sign_lr, "momentum": momentum, "dampening": dampening, "quantile": quantile}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            moments = [self._moment(p, group) for p in parameters]
            if self.scope == "global" and moments:
                bounds = [_quantile(torch.cat([m.flatten() for m in moments]), group["quantile"])] * len(moments)
            else:
                bounds = [_quantile(m.flatten(), group["quantile"]) for m in moments]
            for p, m, bound in zip(parameters, moments, bounds, strict=True):
                p.sub_(torch.where(m.abs() > bound, group["sign_lr"] * m.sign(), group["lr"] * m))
        return loss

    def _moment(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if "moment" not in state:
            state["moment"] = torch.zeros_like(p)
        moment: Tensor = state["moment"]
        return moment.mul_(group["momentum"]).add_(p.grad, alpha=1 - group["dampening"])


def _quantile(values: Tensor, q: float) -> float:
    """The smallest bound that at least a share q of |values| does not exceed; torch.quantile refuses long tensors."""
    count = math.ceil(q * len(values))
    return float(values.abs().kthvalue(count).values) if count else -1.0
