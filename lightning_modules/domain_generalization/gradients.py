"""Gradients of each environment's risk, and the methods whose step is Adam on a gradient of their own making."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.domain_generalization.adam import AdamMethod, adam
from lightning_modules.domain_generalization.method import Batch, Model, Parameters, State


def risk_of(model: Model) -> Callable[[Parameters, Tensor, Tensor], Tensor]:
    """Make the risk a function of parameters, inputs [n, ...] and labels [n]: the mean cross-entropy (scalar)."""

    def risk(parameters: Parameters, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(parameters, inputs)[1], labels)

    return risk


def environment_gradients(model: Model, parameters: Parameters, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """grad R_e of each environment by parameter, [E, ...]; differentiable again.

    Args:
        model: computes (layers, logits).
        parameters: by name.
        inputs: [E, B, ...].
        labels: [E, B].
    """
    each = torch.func.vmap(torch.func.grad(risk_of(model)), in_dims=(None, 0, 0))
    gradients: dict[str, Tensor] = each(dict(parameters), inputs, labels)
    return gradients


class GradientMethod(AdamMethod):
    """A method whose step is Adam on what `gradient` returns."""

    @staticmethod
    def gradient(model: Model, parameters: Parameters, batch: Batch, hyperparameters: Any) -> Parameters:
        """Compute what Adam follows, by the parameters' names; a pure function that works under `torch.func.vmap`.

        Args:
            model: computes (layers, logits).
            parameters: of the network, by name.
            batch: inputs [E, B, ...], labels [E, B] and the step's random numbers.
            hyperparameters: an object with the fields of `Hyperparameters`, numbers or scalar tensors.
        """
        raise NotImplementedError

    @classmethod
    def update(
        cls,
        model: Model,
        parameters: Parameters,
        batch: Batch,
        hyperparameters: Any,
        state: Mapping[str, Tensor],
        step: Tensor,
    ) -> tuple[Parameters, State]:
        """Follow the gradient by Adam."""
        gradients = cls.gradient(model, parameters, batch, hyperparameters)
        return adam(parameters, gradients, state, hyperparameters.lr, hyperparameters.weight_decay)
