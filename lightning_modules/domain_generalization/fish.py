"""Fish: align the environments' gradients by walking through them one at a time and going part of the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.domain_generalization.adam import adam, adam_state
from lightning_modules.domain_generalization.method import (
    Batch,
    Hyperparameters,
    Method,
    Model,
    Parameters,
    Shapes,
    State,
)
from lightning_modules.hyperparameters import Choice


@dataclass(frozen=True)
class FishHyperparameters(Hyperparameters):
    """DomainBed's.

    Args:
        fish_meta_lr: part of the way to the clone that the network goes.
    """

    fish_meta_lr: Annotated[float, Choice((0.05, 0.1, 0.5))] = 0.5


class Fish(Method):
    """theta <- theta + meta_lr (theta' - theta), theta' after one Adam step on each R_e in turn.

    To first order this raises the inner products of the environments' gradients.

    Source: Shi et al., "Gradient Matching for Domain Generalization", arXiv 2104.09937, algorithm 1; Adam and defaults
    of DomainBed.
    """

    Hyperparameters = FishHyperparameters

    @staticmethod
    def initial_state(
        hyperparameters: Any, shapes: Shapes, parameters: Parameters, generator: torch.Generator
    ) -> State:
        """The inner Adam's moments."""
        return adam_state(parameters)

    @staticmethod
    def update(
        model: Model,
        parameters: Parameters,
        batch: Batch,
        hyperparameters: Any,
        state: Mapping[str, Tensor],
        step: Tensor,
    ) -> tuple[Parameters, State]:
        """One inner Adam step an environment, then the interpolation; the inner Adam keeps its moments."""

        def risk(parameters: Parameters, inputs: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(model(parameters, inputs)[1], labels)

        h, clone, moments = hyperparameters, dict(parameters), dict(state)
        for inputs, labels in zip(batch.inputs, batch.labels, strict=True):
            moved, moments = adam(clone, torch.func.grad(risk)(clone, inputs, labels), moments, h.lr, h.weight_decay)
            clone = dict(moved)
        return {name: value + h.fish_meta_lr * (clone[name] - value) for name, value in parameters.items()}, moments
