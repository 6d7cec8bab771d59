"""Fish: align the environments' gradients by walking through them one at a time and going part of the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_modules.domain_generalization.adam import AdamMethod, adam
from lightning_modules.domain_generalization.gradients import risk_of
from lightning_modules.domain_generalization.method import Batch, Hyperparameters, Model, Parameters, State
from lightning_modules.hyperparameters import Choice


@dataclass(frozen=True)
class FishHyperparameters(Hyperparameters):
    """DomainBed's.

    Args:
        fish_meta_lr: part of the way to the clone that the network goes.
    """

    fish_meta_lr: Annotated[float, Choice((0.05, 0.1, 0.5))] = 0.5


class Fish(AdamMethod):
    """theta <- theta + meta_lr (theta' - theta), theta' after one Adam step on each R_e in turn.

    To first order this raises the inner products of the environments' gradients.

    Source: Shi et al., "Gradient Matching for Domain Generalization", arXiv 2104.09937, algorithm 1; Adam and defaults
    of DomainBed.
    """

    Hyperparameters = FishHyperparameters

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
        gradient_of = torch.func.grad(risk_of(model))
        h, clone, moments = hyperparameters, dict(parameters), dict(state)
        for inputs, labels in zip(batch.inputs, batch.labels, strict=True):
            moved, moments = adam(clone, gradient_of(clone, inputs, labels), moments, h.lr, h.weight_decay)
            clone = dict(moved)
        return {name: value + h.fish_meta_lr * (clone[name] - value) for name, value in parameters.items()}, moments
