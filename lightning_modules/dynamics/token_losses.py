"""Tokens as examples: every token's loss as a function of the weights, and its slopes along many directions at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.dynamics.flat import FlatParameters, directional_derivatives, losses_at
from lightning_modules.sequence.language_model import TokenLosses

_MANY_DIRECTIONS = 8
"""From so many on, tokens' own gradients, a few sequences at a time, are quicker than forward mode a direction."""
_GRADIENT_NUMBERS = 2**24
"""Numbers of tokens' gradients held at once, 64 MB in float32."""


class TokenLossesAt:
    """Losses [B S] of a batch's tokens, sequence by sequence, as a function of a model's trainable parameters [D].

    Args:
        module: has `token_losses(batch) -> [B, S]`, which treats sequences one by one.
        tokens: [B, T].

    Raises:
        InputError: a module without `token_losses`.
    """

    def __init__(self, module: nn.Module, tokens: Tensor) -> None:
        self._losses = losses_at(TokenLosses(module), tokens)
        self._tokens, self._flat, self._called = tokens, FlatParameters(module), _Called(module)

    def __call__(self, theta: Tensor) -> Tensor:
        """Losses [B S]."""
        return self._losses(theta)

    def slopes(self, theta: Tensor, directions: Tensor) -> Tensor:
        """<b, gradient of every token's loss> [K, B S] for directions b [K, D].

        A direction costs two forward passes by forward mode; a token's gradient two as well, whatever the number of directions.
        """
        if len(directions) < _MANY_DIRECTIONS:
            return directional_derivatives(self._losses, theta, directions)
        weights = {f"module.{name}": part for name, part in self._flat.split(theta).items()}
        along = {
            f"module.{name}": torch.stack([self._flat.split(b)[name].flatten() for b in directions])
            for name in self._flat.names
        }

        def losses(weights: dict[str, Tensor], sequence: Tensor) -> Tensor:
            found: Tensor = torch.func.functional_call(self._called, weights, (sequence[None],))[0]
            return found

        gradients = torch.func.vmap(torch.func.jacrev(losses), (None, 0))
        each = self._flat.split(theta)
        size = max(1, _GRADIENT_NUMBERS // (sum(p.numel() for p in each.values()) * self._tokens.shape[1]))
        found = []
        with torch.no_grad():
            for some in torch.split(self._tokens, size):
                parts = gradients(weights, some)  # [sequences, tokens, ...] by name
                found.append(sum(along[name] @ parts[name].flatten(2).flatten(0, 1).T for name in along))
        return torch.cat([torch.as_tensor(part) for part in found], 1)


class _Called(nn.Module):
    """Makes `token_losses` what is called, so that `functional_call` can give the model other parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, tokens: Tensor) -> Tensor:
        losses: Any = self.module.token_losses
        found: Tensor = losses(tokens)
        return found
