"""Invariant risk minimisation, version 1: penalise each environment's gradient in a scale of the classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_modules.domain_generalization.losses import annealed, environment_risks
from lightning_modules.domain_generalization.method import Hyperparameters, Method, Outputs, State
from lightning_modules.hyperparameters import IntLogUniform, LogUniform


@dataclass(frozen=True)
class IRMHyperparameters(Hyperparameters):
    """DomainBed's.

    Args:
        irm_lambda: weight of the penalty after annealing.
        irm_anneal_steps: updates with weight 1 before that.
    """

    irm_lambda: Annotated[float, LogUniform(1e-1, 1e5)] = 100.0
    irm_anneal_steps: Annotated[int, IntLogUniform(1, 10**4)] = 500


def irm_penalty(logits: Tensor, labels: Tensor) -> Tensor:
    """Estimate (d/ds R_e(s f) at s=1)^2 for each environment without bias, [E].

    The derivative of the cross-entropy of one example is softmax(f) . f - f_y, so no second pass is needed. The
    squared mean is the product of the means over even and odd examples; it can be negative.

    Args:
        logits: [E, B, C] with B >= 2.
        labels: [E, B].
    """
    expected = (logits.softmax(-1) * logits).sum(-1)
    slope_EB = expected - logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return slope_EB[:, ::2].mean(1) * slope_EB[:, 1::2].mean(1)


class IRM(Method):
    """min over f of (1/E) sum_e [ R_e(f) + w (d/ds R_e(s f) at s=1)^2 ], w = 1, then lambda; Adam restarts there.

    Source: Arjovsky et al., "Invariant Risk Minimization", arXiv 1907.02893, eq. (IRMv1); mini-batch form, schedule and
    defaults of DomainBed.
    """

    Hyperparameters = IRMHyperparameters

    @staticmethod
    def objective(
        outputs: Outputs, labels: Tensor, hyperparameters: Any, state: Mapping[str, Tensor], step: Tensor
    ) -> tuple[Tensor, State]:
        """Mean risk plus weighted mean penalty."""
        weight = annealed(hyperparameters.irm_lambda, hyperparameters.irm_anneal_steps, step)
        penalty = irm_penalty(outputs.logits, labels).mean()
        return environment_risks(outputs.logits, labels).mean() + weight * penalty, {}

    @staticmethod
    def optimizer_reset_step(hyperparameters: Any) -> int:
        """Where the weight jumps."""
        return int(hyperparameters.irm_anneal_steps)


def invariance_gradients(weights: Tensor, features: list[Tensor], labels: list[Tensor]) -> Tensor:
    """Exact linear check of the invariance condition: ||grad_w R_e(w . Phi)|| in each environment, [E].

    A representation Phi with the linear logistic classifier w is feasible for IRM exactly when all of these vanish
    (the full vector; IRMv1's scalar condition is weaker).

    Args:
        weights: [d] classifier on the features, margin y w.Phi.
        features: Phi(x) of each environment, [n_e, d].
        labels: -1 or +1 of each environment, [n_e].
    """
    norms = []
    for phi, y in zip(features, labels, strict=True):
        residual = -torch.sigmoid(-y * (phi @ weights)) * y
        norms.append((residual.unsqueeze(1) * phi).mean(0).norm())
    return torch.stack(norms)
