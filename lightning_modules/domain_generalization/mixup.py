"""Mixup between environments: train on convex combinations of examples of different environments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.domain_generalization.losses import environment_risks
from lightning_modules.domain_generalization.method import Hyperparameters, Method, Outputs, Shapes, State
from lightning_modules.hyperparameters import LogUniform
from lightning_modules.networks import as_floats


@dataclass(frozen=True)
class MixupHyperparameters(Hyperparameters):
    """DomainBed's.

    Args:
        mixup_alpha: both parameters of the Beta law of the mixing weight.
    """

    mixup_alpha: Annotated[float, LogUniform(1e-1, 1e1)] = 0.2


class Mixup(Method):
    """mean over e of a CE(f(x), y_e) + (1 - a) CE(f(x), y_j), x = a x_e + (1 - a) x_j, a ~ Beta(alpha, alpha).

    j is the environment after e on a cycle drawn anew at every step; examples pair by their place in the batch.

    Source: Zhang et al., "mixup", arXiv 1710.09412, between environments as in Yan et al., arXiv 2001.00677, and
    DomainBed.
    """

    Hyperparameters = MixupHyperparameters

    @staticmethod
    def noise(generator: np.random.Generator, shapes: Shapes, hyperparameters: Any) -> dict[str, Tensor]:
        """Draw a random cycle through the environments and a mixing weight for each of its steps, [E] each."""
        cycle = generator.permutation(shapes.environments)
        following = np.empty(shapes.environments, dtype=np.int64)
        following[cycle] = np.roll(cycle, -1)
        weight = generator.beta(hyperparameters.mixup_alpha, hyperparameters.mixup_alpha, shapes.environments)
        return {"partner": torch.from_numpy(following), "weight": torch.tensor(weight, dtype=torch.get_default_dtype())}

    @staticmethod
    def augment(inputs: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """Mix the inputs [E, B, ...] of each environment with those of its partner."""
        inputs = as_floats(inputs)
        weight = noise["weight"].to(inputs.dtype).view(-1, *[1] * (inputs.dim() - 1))
        return weight * inputs + (1 - weight) * inputs[noise["partner"]]

    @staticmethod
    def objective(
        outputs: Outputs, labels: Tensor, hyperparameters: Any, state: Mapping[str, Tensor], step: Tensor
    ) -> tuple[Tensor, State]:
        """Mean of the risks under both labels, weighted as the inputs were."""
        weight = outputs.noise["weight"]
        own = environment_risks(outputs.logits, labels)
        partner = environment_risks(outputs.logits, labels[outputs.noise["partner"]])
        return (weight * own + (1 - weight) * partner).mean(), {}
