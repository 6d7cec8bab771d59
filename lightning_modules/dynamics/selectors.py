"""Other ways to choose outliers than by the change of their loss: what a selection by change is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_modules.dynamics.flat import FlatParameters, directional_derivatives, losses_at
from lightning_modules.dynamics.probe import per_example_losses

SELECTORS = ("loss", "gradient norm", "sharpest direction")


def example_scores(module: nn.Module, batch: Any, direction: Tensor, chunk: int = 256) -> dict[str, Tensor]:
    """Scores [n] of a batch's examples by selector: their loss, |gradient|, and |<direction, gradient>|.

    Args:
        module: has `per_example_losses(batch) -> [n]`.
        batch: of examples.
        direction: [D], e.g. the Hessian's top eigenvector.
        chunk: gradients held at once.
    """
    with torch.no_grad():
        losses = per_example_losses(module, batch)
    along = directional_derivatives(losses_at(module, batch), FlatParameters(module).vector(), direction[None])[0]
    return dict(zip(SELECTORS, (losses, gradient_norms(module, batch, chunk), along.abs()), strict=True))


def gradient_norms(module: nn.Module, batch: Any, chunk: int = 256) -> Tensor:
    """Length of every example's gradient [n].

    Args:
        module: has `per_example_losses(batch) -> [n]`.
        batch: tensors [n, ...] in any nesting.
        chunk: gradients held at once.
    """

    def norm(theta: Tensor, example: Any) -> Tensor:
        one = tree_map(lambda leaf: leaf[None], example)
        length: Tensor = torch.func.grad(lambda at: losses_at(module, one)(at)[0])(theta).norm()
        return length

    theta = FlatParameters(module).vector()
    found: Tensor = torch.func.vmap(norm, in_dims=(None, 0), chunk_size=chunk)(theta, batch)
    return found
