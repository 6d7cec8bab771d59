"""MLDG: a step that also helps environments left out of it (first-order meta-learning)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.domain_generalization.adam import first_adam_step
from lightning_modules.domain_generalization.gradients import GradientMethod, risk_of
from lightning_modules.domain_generalization.method import Batch, Hyperparameters, Model, Parameters, Shapes
from lightning_modules.hyperparameters import Choice, LogUniform


@dataclass(frozen=True)
class MLDGHyperparameters(Hyperparameters):
    """DomainBed's.

    Args:
        mldg_beta: weight of the meta-test gradient.
        mldg_meta_test: environments that serve as meta-test; at most one less than there are to train on.
    """

    mldg_beta: Annotated[float, LogUniform(1e-1, 1e1)] = 1.0
    mldg_meta_test: Annotated[int, Choice((1, 2))] = 2


def meta_gradient(
    model: Model, parameters: Parameters, batch: Batch, lr: Any, weight_decay: Any, beta: Any
) -> Parameters:
    """(1/E) sum over pairs (i, j) of grad R_i(theta) + beta grad R_j(theta after one fresh Adam step on R_i)."""
    gradient_of = torch.func.grad(risk_of(model))

    def of_pair(inputs_i: Tensor, labels_i: Tensor, inputs_j: Tensor, labels_j: Tensor) -> Parameters:
        inner = gradient_of(dict(parameters), inputs_i, labels_i)
        outer = gradient_of(first_adam_step(parameters, inner, lr, weight_decay), inputs_j, labels_j)
        return {name: inner[name] + beta * outer[name] for name in inner}

    train, test = batch.noise["train"], batch.noise["test"]
    pairs = batch.inputs[train], batch.labels[train], batch.inputs[test], batch.labels[test]
    each = torch.func.vmap(of_pair)(*pairs)
    return {name: gradient.sum(0) / batch.labels.shape[0] for name, gradient in each.items()}


class MLDG(GradientMethod):
    """theta follows grad R_i(theta) + beta grad R_j(theta'), theta' one Adam step on R_i away; no second derivatives.

    Source: Li et al., "Learning to Generalize: Meta-Learning for Domain Generalization", arXiv 1710.03463, algorithm 1;
    first order, pairs and defaults of DomainBed. DomainBed trains nothing where `mldg_meta_test` takes all
    environments; here one always remains for meta-train.
    """

    Hyperparameters = MLDGHyperparameters
    minimum_environments = 2
    structural = ("mldg_meta_test",)

    @staticmethod
    def noise(generator: np.random.Generator, shapes: Shapes, hyperparameters: Any) -> dict[str, Tensor]:
        """Draw which environments are meta-train, and the meta-test environment that each of them is paired with."""
        tests = min(int(hyperparameters.mldg_meta_test), shapes.environments - 1)
        order = generator.permutation(shapes.environments)
        train, test = order[: shapes.environments - tests], order[shapes.environments - tests :]
        return {"train": torch.from_numpy(train), "test": torch.from_numpy(np.resize(test, len(train)))}

    @staticmethod
    def gradient(model: Model, parameters: Parameters, batch: Batch, hyperparameters: Any) -> Parameters:
        """Meta-gradient."""
        h = hyperparameters
        return meta_gradient(model, parameters, batch, h.lr, h.weight_decay, h.mldg_beta)
