"""CORAL: match the means and covariances of the environments' features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_modules.domain_generalization.losses import environment_risks
from lightning_modules.domain_generalization.method import Hyperparameters, Method, Outputs, State
from lightning_modules.hyperparameters import LogUniform


@dataclass(frozen=True)
class CORALHyperparameters(Hyperparameters):
    """DomainBed's.

    Args:
        mmd_gamma: weight of the distance between features.
    """

    mmd_gamma: Annotated[float, LogUniform(1e-1, 1e1)] = 1.0


def coral_distance(features: Tensor) -> Tensor:
    """Mean over pairs of environments of mean((m_i - m_j)^2) + mean((C_i - C_j)^2), from features [E, B, d].

    Zero for a single environment.
    """
    environments = features.shape[0]
    means = features.mean(1)
    centred = features - means.unsqueeze(1)
    covariances = centred.mT @ centred / (features.shape[1] - 1)
    first, second = torch.triu_indices(environments, environments, offset=1, device=features.device)
    if len(first) == 0:
        return features.new_zeros(())
    mean_gap = (means[first] - means[second]).square().mean()
    covariance_gap = (covariances[first] - covariances[second]).square().mean()
    return mean_gap + covariance_gap


class CORAL(Method):
    """min over f of mean_e R_e + gamma * mean over pairs of environments of their distance in mean and covariance.

    Source: Sun & Saenko, "Deep CORAL", arXiv 1607.01719, in DomainBed's form (means too, all pairs).
    """

    Hyperparameters = CORALHyperparameters

    @staticmethod
    def objective(
        outputs: Outputs, labels: Tensor, hyperparameters: Any, state: Mapping[str, Tensor], step: Tensor
    ) -> tuple[Tensor, State]:
        """Mean risk plus weighted distance."""
        distance = coral_distance(outputs.features)
        return environment_risks(outputs.logits, labels).mean() + hyperparameters.mmd_gamma * distance, {}
