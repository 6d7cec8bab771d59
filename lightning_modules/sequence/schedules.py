"""What trains a transformer: AdamW, and a learning rate that warms up and then falls or stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.errors import InputError

Shape = Literal["cosine", "constant"]


def adamw(
    parameters: nn.Module | Iterable[nn.Parameter],
    lr: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> AdamW:
    """AdamW on the parameters that are trained; frozen ones are left out, so that decay does not shrink them.

    Args:
        parameters: a module, or some of its parameters.
        lr: peak learning rate.
        weight_decay: decoupled, on every parameter.
        betas: decay rates of the two moments.
        eps: added to the root of the second.
    """
    given = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
    trained = [p for p in given if p.requires_grad]
    # One kernel for all tensors: small models spend as long in the optimiser as in the network otherwise.
    fused = bool(trained) and all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trained)
    return AdamW(trained, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, fused=fused)


def warmup_share(
    warmup_steps: int, total_steps: int, final_share: float = 0.0, shape: Shape = "cosine"
) -> Callable[[int], float]:
    """The share of the peak learning rate at each step.

    It rises by equal amounts from 1 / warmup_steps at step 0 to 1 at step warmup_steps - 1. After that it is 1 ("constant"), or
    falls along half a cosine to `final_share`, where it is from step `total_steps` on.

    Raises:
        InputError: negative steps, a warm-up longer than the cosine's training, a final share outside [0, 1].
    """
    if shape not in ("cosine", "constant"):
        raise InputError(f"shape: unknown {shape!r}; choose from cosine, constant")
    if warmup_steps < 0:
        raise InputError(f"warmup_steps: is {warmup_steps}; give 0 or more")
    if shape == "cosine" and total_steps < warmup_steps:
        raise InputError(f"total_steps: {total_steps} end within the warm-up of {warmup_steps}; give more")
    if not 0 <= final_share <= 1:
        raise InputError(f"final_share: is {final_share}; give 0 to 1")

    def share(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if shape == "constant":
            return 1.0
        gone = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return final_share + (1 - final_share) * (1 + math.cos(math.pi * gone)) / 2

    return share


def warmup_schedule(
    optimizer: Optimizer, warmup_steps: int, total_steps: int, final_share: float = 0.0, shape: Shape = "cosine"
) -> LambdaLR:
    """A learning rate that follows `warmup_share`; step it after each update.

    Raises:
        InputError: as `warmup_share` does.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = warmup_schedule(optimizer, warmup_steps=2, total_steps=4)
        >>> schedule.get_last_lr()
        [0.5]
    """
    return LambdaLR(optimizer, warmup_share(warmup_steps, total_steps, final_share, shape))


def lightning_schedule(schedule: LambdaLR) -> dict[str, object]:
    """What `configure_optimizers` returns under "lr_scheduler", so that Lightning steps it after each update."""
    return {"scheduler": schedule, "interval": "step", "frequency": 1}
