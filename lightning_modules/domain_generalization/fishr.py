"""Fishr: match the variances of the environments' per-example gradients in the classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_modules.domain_generalization.losses import environment_risks, one_hot
from lightning_modules.domain_generalization.method import Hyperparameters, Method, Outputs, Parameters, Shapes, State
from lightning_modules.hyperparameters import IntUniform, LogUniform, Uniform


@dataclass(frozen=True)
class FishrHyperparameters(Hyperparameters):
    """DomainBed's.

    Args:
        fishr_lambda: weight of the penalty after annealing.
        fishr_anneal_steps: updates without penalty before that.
        fishr_ema: share of the past in the moving average of the variances.
    """

    fishr_lambda: Annotated[float, LogUniform(1e1, 1e4)] = 1000.0
    fishr_anneal_steps: Annotated[int, IntUniform(0, 5000)] = 1500
    fishr_ema: Annotated[float, Uniform(0.9, 0.99)] = 0.95


def gradient_variances(features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Variance over an environment's examples of the gradient of their cross-entropy in the classifier, [E, C (d+1)].

    An example's gradient is (softmax(f) - onehot(y)) outer (z, 1), so mean squares and squared means are products of
    matrices and no example's gradient is ever formed. Divisor B.

    Args:
        features: z [E, B, d].
        logits: f [E, B, C].
        labels: [E, B].
    """
    residual = logits.softmax(-1) - one_hot(labels, logits.shape[-1], logits)
    extended = torch.cat([features, torch.ones_like(features[..., :1])], -1)
    count = labels.shape[1]
    mean = residual.mT @ extended / count
    mean_square = residual.square().mT @ extended.square() / count
    return (mean_square - mean.square()).flatten(1)


class Fishr(Method):
    """min over f of mean_e R_e + lambda * mean_e ||v_e - mean v||^2 / #entries, v_e the head's gradient variance.

    v_e is a moving average over steps, divided by (1 - ema) so that the gradient through the present batch has the
    weight it would have without averaging. The penalty begins after annealing, where Adam restarts.

    Source: Rame et al., "Fishr", arXiv 2109.02934, eq. 4; moving average, schedule and defaults of DomainBed.
    """

    Hyperparameters = FishrHyperparameters

    @staticmethod
    def initial_state(
        hyperparameters: Any, shapes: Shapes, parameters: Parameters, generator: torch.Generator
    ) -> State:
        """Averages of zero, [E, C (d+1)]."""
        return {"variance": torch.zeros(shapes.environments, shapes.classes * (shapes.features + 1))}

    @staticmethod
    def objective(
        outputs: Outputs, labels: Tensor, hyperparameters: Any, state: Mapping[str, Tensor], step: Tensor
    ) -> tuple[Tensor, State]:
        """Mean risk plus weighted mean squared distance of the variances from their mean."""
        ema = hyperparameters.fishr_ema
        now = gradient_variances(outputs.features, outputs.logits, labels)
        average = ema * state["variance"] + (1 - ema) * now
        scaled = average / (1 - ema)
        penalty = (scaled - scaled.mean(0)).square().mean()
        on = (step >= hyperparameters.fishr_anneal_steps).to(penalty.dtype)
        risk = environment_risks(outputs.logits, labels).mean()
        return risk + on * hyperparameters.fishr_lambda * penalty, {"variance": average}

    @staticmethod
    def optimizer_reset_step(hyperparameters: Any) -> int:
        """Where the penalty begins."""
        return int(hyperparameters.fishr_anneal_steps)
