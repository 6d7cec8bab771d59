"""Iterative feature matching: every hidden layer keeps what has the same class-conditional moments everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_modules.domain_generalization.feature_matching.moments import moment_matching_penalty
from lightning_modules.domain_generalization.losses import environment_risks
from lightning_modules.domain_generalization.method import Hyperparameters, Method, Outputs, State
from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import Choice, LogUniform


@dataclass(frozen=True)
class IterativeFeatureMatchingHyperparameters(Hyperparameters):
    """The penalty's range is the paper's grid for digits.

    Args:
        ifm_lambda: weight of the matching.
        ifm_match: "all" matches every environment in every layer; "disjoint" matches, in layer l of L, the l-th group
            of E/L environments only (at least two in each), as the paper's proof has it.
        ifm_conditional: whether moments are matched class by class.
    """

    ifm_lambda: Annotated[float, LogUniform(1e-1, 1e2)] = 1.0
    ifm_match: str = "all"
    ifm_conditional: Annotated[bool, Choice((True, False))] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ifm_match not in ("all", "disjoint"):
            raise InputError(f"hyperparameters: ifm_match is {self.ifm_match!r}; choose all or disjoint")


class IterativeFeatureMatching(Method):
    """min over f of mean_e R_e + lambda * sum over layers l and consecutive environments of their moments' distance.

    The distance is sum over classes of mean((m_i - m_j)^2) + mean((C_i - C_j)^2) of the layer's activations; a class
    with fewer than two examples in a batch is left out.

    Source: Chen, Rosenfeld, Sellke, Ma & Risteski, "Iterative Feature Matching", arXiv 2106.09913, in the form of its
    published code for multi-layer networks.
    """

    Hyperparameters = IterativeFeatureMatchingHyperparameters
    minimum_environments = 2
    networks = ("mlp", "small-cnn", "cnn")

    @staticmethod
    def objective(
        outputs: Outputs, labels: Tensor, hyperparameters: Any, state: Mapping[str, Tensor], step: Tensor
    ) -> tuple[Tensor, State]:
        """Mean risk plus weighted distances of all layers.

        Raises:
            InputError: "disjoint" with fewer than two environments a layer.
        """
        h, count = hyperparameters, labels.shape[0]
        classes = outputs.logits.shape[-1] if h.ifm_conditional else None
        if h.ifm_match == "disjoint" and count < 2 * len(outputs.layers):
            raise InputError(
                f"hyperparameters: ifm_match 'disjoint' needs two environments for each of {len(outputs.layers)} layers, "
                f"got {count}; hold out fewer, or give all"
            )
        penalties = []
        for layer, values in enumerate(outputs.layers):
            start, end = 0, count
            if h.ifm_match == "disjoint":
                start, end = (k * count // len(outputs.layers) for k in (layer, layer + 1))
            own = labels[start:end] if h.ifm_conditional else None
            penalties.append(moment_matching_penalty(values[start:end], own, classes))
        return environment_risks(outputs.logits, labels).mean() + h.ifm_lambda * torch.stack(penalties).sum(), {}
