"""Spectral decoupling: penalise the logits' size, so that no feature starves the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from lightning_modules.domain_generalization.losses import environment_risks
from lightning_modules.domain_generalization.method import Hyperparameters, Method, Outputs, State
from lightning_modules.hyperparameters import LogUniform


@dataclass(frozen=True)
class SDHyperparameters(Hyperparameters):
    """DomainBed's.

    Args:
        sd_reg: weight of the mean squared logit.
    """

    sd_reg: Annotated[float, LogUniform(1e-5, 1e-1)] = 0.1


class SD(Method):
    """min over f of mean_e R_e + lambda * mean over examples and classes of f^2.

    Source: Pezeshki et al., "Gradient Starvation", arXiv 2011.09468, eq. 25.
    """

    Hyperparameters = SDHyperparameters

    @staticmethod
    def objective(
        outputs: Outputs, labels: Tensor, hyperparameters: Any, state: Mapping[str, Tensor], step: Tensor
    ) -> tuple[Tensor, State]:
        """Mean risk plus weighted mean squared logit."""
        penalty = outputs.logits.square().mean()
        return environment_risks(outputs.logits, labels).mean() + hyperparameters.sd_reg * penalty, {}
