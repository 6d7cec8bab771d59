"""AND-mask: follow only those directions on which the environments' gradients agree in sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from lightning_modules.domain_generalization.gradients import GradientMethod, environment_gradients
from lightning_modules.domain_generalization.method import Batch, Hyperparameters, Model, Parameters
from lightning_modules.hyperparameters import Uniform


@dataclass(frozen=True)
class ANDMaskHyperparameters(Hyperparameters):
    """DomainBed's.

    Args:
        andmask_tau: least agreement |mean over environments of the gradient's sign| that lets an entry through.
    """

    andmask_tau: Annotated[float, Uniform(0.5, 1.0)] = 1.0


def masked_mean(gradients: Tensor, tau: Any) -> Tensor:
    """Mean over environments of gradients [E, ...] where their signs agree, over the share of entries that remain."""
    mask = (gradients.sign().mean(0).abs() >= tau).to(gradients.dtype)
    rescaled: Tensor = mask * gradients.mean(0) / (1e-10 + mask.mean())
    return rescaled


class ANDMask(GradientMethod):
    """theta follows mean_e grad R_e times [ |mean_e sign(grad R_e)| >= tau ], divided by the share of ones.

    Source: Parascandolo et al., "Learning explanations that are hard to vary", arXiv 2009.00329, section 2.4; the
    rescaling is DomainBed's.
    """

    Hyperparameters = ANDMaskHyperparameters

    @staticmethod
    def gradient(model: Model, parameters: Parameters, batch: Batch, hyperparameters: Any) -> Parameters:
        """Masked mean gradient, each parameter tensor rescaled on its own."""
        gradients = environment_gradients(model, parameters, batch.inputs, batch.labels)
        return {name: masked_mean(g, hyperparameters.andmask_tau) for name, g in gradients.items()}
