"""Representation self-challenging: train on features from which the most useful ones were taken away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.domain_generalization.losses import environment_risks
from lightning_modules.domain_generalization.method import Hyperparameters, Method, Outputs, State
from lightning_modules.hyperparameters import Uniform


@dataclass(frozen=True)
class RSCHyperparameters(Hyperparameters):
    """DomainBed's.

    Args:
        rsc_f_drop_factor: share of an example's features that is muted.
        rsc_b_drop_factor: share of the examples to which muting applies.
    """

    rsc_f_drop_factor: Annotated[float, Uniform(0.0, 0.5)] = 1 / 3
    rsc_b_drop_factor: Annotated[float, Uniform(0.0, 0.5)] = 1 / 3


def percentile(values: Tensor, share: Any) -> Tensor:
    """Linearly interpolated quantile `share` of the last axis of [..., n], as numpy.percentile gives it."""
    ordered = values.sort(-1).values
    place = torch.as_tensor(share, dtype=values.dtype, device=values.device) * (values.shape[-1] - 1)
    below = place.floor().long().clamp(0, values.shape[-1] - 1)
    above = (below + 1).clamp_max(values.shape[-1] - 1)
    fraction = place - below
    low = ordered.index_select(-1, below.reshape(1)).squeeze(-1)
    high = ordered.index_select(-1, above.reshape(1)).squeeze(-1)
    return low + fraction * (high - low)


class RSC(Method):
    """Cross-entropy on features z whose entries with the largest gradient of f_y are zeroed, in the worst-hit examples.

    Muted are the entries of z where d f_y / d z is in the top `f` share of the example, in the examples whose
    probability of the true class falls most by it (the top `b` share of all environments' examples together).

    Source: Huang et al., "Self-Challenging Improves Cross-Domain Generalization", arXiv 2007.02454, eqs. 1 to 5;
    shares and defaults of DomainBed.
    """

    Hyperparameters = RSCHyperparameters

    @staticmethod
    def objective(
        outputs: Outputs, labels: Tensor, hyperparameters: Any, state: Mapping[str, Tensor], step: Tensor
    ) -> tuple[Tensor, State]:
        """Mean risk on the muted features."""
        assert outputs.weight is not None
        assert outputs.bias is not None
        features, weight, bias = outputs.features, outputs.weight, outputs.bias
        # The classifier is linear: the gradient of f_y in z is row y of its weights.
        slopes = weight.detach()[labels]
        kept = slopes < percentile(slopes, 1 - hyperparameters.rsc_f_drop_factor).unsqueeze(-1)
        with torch.no_grad():
            muted = F.linear(features * kept, weight, bias).softmax(-1)
            change = (outputs.logits.softmax(-1) - muted).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
            spared = change < percentile(change.flatten(), 1 - hyperparameters.rsc_b_drop_factor)
        mask = kept | spared.unsqueeze(-1)
        return environment_risks(F.linear(features * mask, weight, bias), labels).mean(), {}
