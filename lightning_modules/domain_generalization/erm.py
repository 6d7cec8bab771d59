"""Empirical risk minimisation: the mean loss over all environments' examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_modules.domain_generalization.losses import environment_risks
from lightning_modules.domain_generalization.method import Method, Outputs, State


class ERM(Method):
    """min over f of (1/E) sum_e R_e(f): the environments' batches are of equal size, so this is the pooled mean.

    Source: Vapnik, "Statistical Learning Theory", 1998; the baseline of DomainBed (arXiv 2007.01434).
    """

    @staticmethod
    def objective(
        outputs: Outputs, labels: Tensor, hyperparameters: Any, state: Mapping[str, Tensor], step: Tensor
    ) -> tuple[Tensor, State]:
        """Mean risk."""
        return environment_risks(outputs.logits, labels).mean(), {}
