"""Gradients of each environment's risk, for the methods that look at them one by one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.domain_generalization.method import Model, Parameters


def environment_gradients(model: Model, parameters: Parameters, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """grad R_e of each environment by parameter, [E, ...]; differentiable again.

    Args:
        model: computes (layers, logits).
        parameters: by name.
        inputs: [E, B, ...].
        labels: [E, B].
    """

    def risk(parameters: Parameters, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(parameters, inputs)[1], labels)

    gradients: dict[str, Tensor] = torch.func.vmap(torch.func.grad(risk), in_dims=(None, 0, 0))(
        dict(parameters), inputs, labels
    )
    return gradients
