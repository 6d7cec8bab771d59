"""Group distributionally robust optimisation: weigh the environments by how badly they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_modules.domain_generalization.losses import environment_risks
from lightning_modules.domain_generalization.method import Hyperparameters, Method, Outputs, Parameters, Shapes, State
from lightning_modules.hyperparameters import LogUniform


@dataclass(frozen=True)
class GroupDROHyperparameters(Hyperparameters):
    """DomainBed's.

    Args:
        groupdro_eta: step size of the environments' weights.
    """

    groupdro_eta: Annotated[float, LogUniform(1e-3, 1e-1)] = 1e-2


class GroupDRO(Method):
    """min over f of max over q of sum_e q_e R_e(f), q in the simplex, by q_e <- q_e exp(eta R_e), normalised.

    Source: Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", arXiv 1911.08731, algorithm 1.
    """

    Hyperparameters = GroupDROHyperparameters

    @staticmethod
    def initial_state(
        hyperparameters: Any, shapes: Shapes, parameters: Parameters, generator: torch.Generator
    ) -> State:
        """Equal weights q [E]."""
        return {"q": torch.full((shapes.environments,), 1 / shapes.environments)}

    @staticmethod
    def objective(
        outputs: Outputs, labels: Tensor, hyperparameters: Any, state: Mapping[str, Tensor], step: Tensor
    ) -> tuple[Tensor, State]:
        """Risk under the updated weights."""
        risks = environment_risks(outputs.logits, labels)
        # In logarithms, so that a large risk cannot overflow the exponential.
        q = (state["q"].log() + hyperparameters.groupdro_eta * risks.detach()).softmax(0)
        return q @ risks, {"q": q}
