"""MMD: match the distributions of the environments' features in a sum of Gaussian kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_modules.domain_generalization.losses import environment_risks
from lightning_modules.domain_generalization.method import Hyperparameters, Method, Outputs, State
from lightning_modules.hyperparameters import LogUniform

KERNEL_GAMMAS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
"""The kernel is the sum over these of exp(-gamma ||x - y||^2)."""


@dataclass(frozen=True)
class MMDHyperparameters(Hyperparameters):
    """DomainBed's.

    Args:
        mmd_gamma: weight of the discrepancy.
    """

    mmd_gamma: Annotated[float, LogUniform(1e-1, 1e1)] = 1.0


def mmd_distance(features: Tensor) -> Tensor:
    """Mean over pairs of environments of the squared maximum mean discrepancy, from features [E, B, d].

    The biased estimate: means over all pairs of examples, each with itself included. Zero for a single environment.
    """
    environments = features.shape[0]
    norms = features.square().sum(-1)
    squares = norms[:, None, :, None] + norms[None, :, None, :] - 2 * torch.einsum("ebd,fcd->efbc", features, features)
    squares = squares.clamp_min(1e-30)
    kernel = sum(torch.exp(-gamma * squares) for gamma in KERNEL_GAMMAS)
    assert isinstance(kernel, Tensor)
    means = kernel.mean((2, 3))
    first, second = torch.triu_indices(environments, environments, offset=1, device=features.device)
    if len(first) == 0:
        return features.new_zeros(())
    own = means.diagonal()
    return (own[first] + own[second] - 2 * means[first, second]).mean()


class MMD(Method):
    """min over f of mean_e R_e + gamma * mean over pairs of environments of MMD^2 between their features.

    Source: Li et al., "Domain Generalization with Adversarial Feature Learning", CVPR 2018; kernels of DomainBed.
    """

    Hyperparameters = MMDHyperparameters

    @staticmethod
    def objective(
        outputs: Outputs, labels: Tensor, hyperparameters: Any, state: Mapping[str, Tensor], step: Tensor
    ) -> tuple[Tensor, State]:
        """Mean risk plus weighted discrepancy."""
        distance = mmd_distance(outputs.features)
        return environment_risks(outputs.logits, labels).mean() + hyperparameters.mmd_gamma * distance, {}
