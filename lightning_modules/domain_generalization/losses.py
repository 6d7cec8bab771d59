"""What several objectives share: risks of environments and schedules of penalties."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def environment_risks(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each environment, R_e [E], from logits [E, B, C] and labels [E, B]."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(labels.shape).mean(1)


def one_hot(labels: Tensor, classes: int, like: Tensor) -> Tensor:
    """Labels [...] as rows of zeros and a one, [..., C], of the type of `like` (torch's own does not run in a pack)."""
    return (labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)).to(like.dtype)


def annealed(weight: Any, anneal_steps: Any, step: Tensor) -> Tensor:
    """Weight of a penalty: 1 before `anneal_steps` updates, `weight` from then on (scalar)."""
    weight = torch.as_tensor(weight, dtype=torch.get_default_dtype(), device=step.device)
    return torch.where(step >= anneal_steps, weight, torch.ones_like(weight))
