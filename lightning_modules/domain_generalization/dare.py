"""DARE: ERM's features, and a last layer on features whitened environment by environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.domain_generalization.domain_adjusted.regression import DomainAdjustedRegression
from lightning_modules.domain_generalization.losses import environment_risks
from lightning_modules.domain_generalization.method import Hyperparameters, Method, Outputs, Readings, State
from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import LogUniform


@dataclass(frozen=True)
class DAREHyperparameters(Hyperparameters):
    """Defaults and laws are ours; the paper's are not known to us.

    Args:
        dare_shrinkage: share of the identity (times the mean variance) in each covariance.
        dare_l2: weight of the ridge on the last layer.
        dare_adjustment: how an environment without labels is whitened: "target" by the covariance of its own
            unlabelled examples ("in" split; just-in-time unsupervised adaptation), "mean_cov" by the mean covariance
            of the training environments, which needs nothing of it.
        dare_center: "constraint" (every domain mean predicts nothing) or "subtract" (domain means are subtracted).
    """

    dare_shrinkage: Annotated[float, LogUniform(1e-2, 0.5)] = 0.1
    dare_l2: Annotated[float, LogUniform(1e-6, 1e-2)] = 1e-4
    dare_adjustment: str = "target"
    dare_center: str = "constraint"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dare_adjustment not in ("target", "mean_cov"):
            raise InputError(f"hyperparameters: dare_adjustment is {self.dare_adjustment!r}; choose target or mean_cov")
        if self.dare_center not in ("constraint", "subtract"):
            raise InputError(f"hyperparameters: dare_center is {self.dare_center!r}; choose constraint or subtract")
        if not 0 <= self.dare_shrinkage <= 1 or self.dare_l2 < 0:
            raise InputError("hyperparameters: give dare_shrinkage from 0 to 1 and dare_l2 of 0 or more")


class DARE(Method):
    """min over beta of sum_e E_e CE(softmax(beta' Sigma_e^{-1/2} z), y) s.t. softmax(beta' Sigma_e^{-1/2} mu_e) = 1/k.

    z are the features of a network trained by ERM; beta is fitted to the training environments' features at every
    evaluation, and another environment is whitened by its own unlabelled examples or by the mean covariance.

    Source: Rosenfeld, Ravikumar & Risteski, "Domain-Adjusted Regression or: ERM May Already Learn Features Sufficient
    for Out-of-Distribution Generalization", arXiv 2202.06856; solved exactly in the null space of the constraints.
    """

    Hyperparameters = DAREHyperparameters
    minimum_environments = 2

    @staticmethod
    def objective(
        outputs: Outputs, labels: Tensor, hyperparameters: Any, state: Mapping[str, Tensor], step: Tensor
    ) -> tuple[Tensor, State]:
        """Mean risk: the features are ERM's."""
        return environment_risks(outputs.logits, labels).mean(), {}

    @staticmethod
    def readout(features: Tensor, readings: Readings, hyperparameters: Any) -> Tensor:
        """Fit beta on the training environments and whiten every environment by what may be known of it.

        Raises:
            FloatingPointError: when the features are not finite.
        """
        h, z = hyperparameters, features.double().numpy()
        if not np.isfinite(z).all():
            raise FloatingPointError("DARE: the network's features are not finite")
        rows = torch.cat(readings.training).numpy()
        domains = np.repeat(np.arange(len(readings.training)), [len(part) for part in readings.training])
        fitted = DomainAdjustedRegression(shrinkage=h.dare_shrinkage, l2=h.dare_l2, center=h.dare_center)
        fitted.fit(z[rows], readings.labels.numpy()[rows], domains)
        logits = torch.zeros(len(z), readings.classes, dtype=torch.float64)
        training = 0
        for trained, here, sample in zip(readings.trained, readings.everywhere, readings.unlabelled, strict=True):
            predictor: Any = fitted
            if trained:
                predictor = fitted.adapt_to(fitted.stats_, training)
                training += 1
            elif h.dare_adjustment == "target":
                predictor = fitted.adapt(z[sample.numpy()])
            logits[here, : fitted.beta_.shape[1]] = torch.from_numpy(predictor.decision_function(z[here.numpy()]))
        return logits
