"""EQRM: minimise a high quantile of the environments' risks instead of their mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_modules.domain_generalization.losses import environment_risks
from lightning_modules.domain_generalization.method import Hyperparameters, Method, Outputs, State
from lightning_modules.hyperparameters import IntLogUniform, LogUniform, Uniform

_BISECTIONS = 40


@dataclass(frozen=True)
class EQRMHyperparameters(Hyperparameters):
    """DomainBed's.

    Args:
        eqrm_quantile: which quantile of the risks is minimised.
        eqrm_burnin_steps: updates of plain ERM before that.
        eqrm_lr: Adam's learning rate from then on.
    """

    eqrm_quantile: Annotated[float, Uniform(0.5, 0.99)] = 0.75
    eqrm_burnin_steps: Annotated[int, IntLogUniform(10**2.5, 10**3.5)] = 2500
    eqrm_lr: Annotated[float, LogUniform(1e-7, 1e-5)] = 1e-6


def kernel_quantile(risks: Tensor, quantile: Any) -> Tensor:
    """Quantile of a Gaussian kernel density fitted to the risks [E]; differentiable in the risks.

    Bandwidth 1.06 s E^(-1/5), s the sample standard deviation (divisor E - 1). The quantile is found by bisection; one
    Newton step from there, taken with the graph, has the derivative of the implicit function.
    """
    spread = risks.var(correction=1).clamp_min(1e-16).sqrt()  # equal risks: the density is a point, its mean
    width = 1.06 * spread * risks.shape[0] ** -0.2

    def distribution(at: Tensor, centres: Tensor, width: Tensor) -> Tensor:
        inside: Tensor = torch.special.ndtr((at - centres) / width).mean()
        return inside

    fixed, fixed_width = risks.detach(), width.detach()
    # Beyond +-8 widths of the extremes nothing of the density is left in double precision.
    low, high = fixed.min() - 8 * fixed_width, fixed.max() + 8 * fixed_width
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = distribution(middle, fixed, fixed_width) > quantile
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    root = (low + high) / 2
    scaled = (root - fixed) / fixed_width
    density = (torch.exp(-scaled.square() / 2) / (fixed_width * (2 * torch.pi) ** 0.5)).mean()
    stepped: Tensor = root - (distribution(root, risks, width) - quantile) / density.clamp_min(1e-12)
    return stepped


class EQRM(Method):
    """min over f of the alpha-quantile of the distribution of risks R_e over environments, after a burn-in of ERM.

    Source: Eastwood et al., "Probable Domain Generalization via Quantile Risk Minimization", arXiv 2207.09944,
    algorithm 1; schedule and defaults of DomainBed. DomainBed differentiates its bisection's end points; here the
    quantile's own derivative is used.
    """

    Hyperparameters = EQRMHyperparameters
    minimum_environments = 2

    @staticmethod
    def objective(
        outputs: Outputs, labels: Tensor, hyperparameters: Any, state: Mapping[str, Tensor], step: Tensor
    ) -> tuple[Tensor, State]:
        """Mean risk, then the quantile of the risks."""
        risks = environment_risks(outputs.logits, labels)
        quantile = kernel_quantile(risks, hyperparameters.eqrm_quantile)
        return torch.where(step < hyperparameters.eqrm_burnin_steps, risks.mean(), quantile), {}

    @staticmethod
    def optimizer_reset_step(hyperparameters: Any) -> int:
        """The end of the burn-in."""
        return int(hyperparameters.eqrm_burnin_steps)

    @staticmethod
    def learning_rate_after_reset(hyperparameters: Any) -> float:
        """Its own, much smaller."""
        return float(hyperparameters.eqrm_lr)
