"""V-REx: penalise the variance of the environments' risks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from lightning_modules.domain_generalization.losses import annealed, environment_risks
from lightning_modules.domain_generalization.method import Hyperparameters, Method, Outputs, State
from lightning_modules.hyperparameters import IntLogUniform, LogUniform


@dataclass(frozen=True)
class VRExHyperparameters(Hyperparameters):
    """DomainBed's.

    Args:
        vrex_lambda: weight of the variance after annealing.
        vrex_anneal_steps: updates with weight 1 before that.
    """

    vrex_lambda: Annotated[float, LogUniform(1e-1, 1e5)] = 10.0
    vrex_anneal_steps: Annotated[int, IntLogUniform(1, 10**4)] = 500


class VREx(Method):
    """min over f of mean_e R_e + w Var_e(R_e) (population variance), w = 1, then lambda; Adam restarts there.

    Source: Krueger et al., "Out-of-Distribution Generalization via Risk Extrapolation", arXiv 2003.00688; schedule and
    defaults of DomainBed.
    """

    Hyperparameters = VRExHyperparameters
    minimum_environments = 2

    @staticmethod
    def objective(
        outputs: Outputs, labels: Tensor, hyperparameters: Any, state: Mapping[str, Tensor], step: Tensor
    ) -> tuple[Tensor, State]:
        """Mean risk plus weighted variance of the risks."""
        risks = environment_risks(outputs.logits, labels)
        weight = annealed(hyperparameters.vrex_lambda, hyperparameters.vrex_anneal_steps, step)
        return risks.mean() + weight * risks.var(correction=0), {}

    @staticmethod
    def optimizer_reset_step(hyperparameters: Any) -> int:
        """Where the weight jumps."""
        return int(hyperparameters.vrex_anneal_steps)
