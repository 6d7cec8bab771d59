"""IGA: align the environments' gradients by penalising their variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_modules.domain_generalization.gradients import GradientMethod, environment_gradients
from lightning_modules.domain_generalization.losses import environment_risks
from lightning_modules.domain_generalization.method import Batch, Hyperparameters, Model, Parameters
from lightning_modules.hyperparameters import LogUniform


@dataclass(frozen=True)
class IGAHyperparameters(Hyperparameters):
    """DomainBed's.

    Args:
        iga_penalty: weight of the gradients' variance.
    """

    iga_penalty: Annotated[float, LogUniform(1e1, 1e5)] = 1000.0


def gradient_dispersion(model: Model, parameters: Parameters, batch: Batch) -> Tensor:
    """sum_e ||grad R_e - grad mean R||^2 over all parameters (scalar)."""
    gradients = environment_gradients(model, parameters, batch.inputs, batch.labels)
    return torch.stack([(g - g.mean(0)).square().sum() for g in gradients.values()]).sum()


class IGA(GradientMethod):
    """min over f of mean_e R_e + lambda * sum_e ||grad R_e - grad mean_e R_e||^2, through second derivatives.

    Source: Koyama & Yamaguchi, "When is invariance useful in an out-of-distribution generalization problem?",
    arXiv 2008.01883, in DomainBed's form. With one environment the penalty is zero.
    """

    Hyperparameters = IGAHyperparameters

    @staticmethod
    def gradient(model: Model, parameters: Parameters, batch: Batch, hyperparameters: Any) -> Parameters:
        """Gradient of the mean risk plus the weighted dispersion."""

        def loss(parameters: Parameters) -> Tensor:
            logits = model(parameters, batch.inputs.flatten(0, 1))[1].view(*batch.labels.shape, -1)
            risk = environment_risks(logits, batch.labels).mean()
            total: Tensor = risk + hyperparameters.iga_penalty * gradient_dispersion(model, parameters, batch)
            return total

        gradients: Parameters = torch.func.grad(loss)(dict(parameters))
        return gradients
