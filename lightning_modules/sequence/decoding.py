"""Writing sequences token by token, with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_modules.sequence.transformer import Cache, Transformer

Choose = Callable[[Tensor], Tensor]
"""Maps logits [B, V] to tokens [B]."""


def most_likely(logits: Tensor) -> Tensor:
    """The tokens [B] of the largest logits [B, V]."""
    return logits.argmax(-1)


def sampled(generator: torch.Generator, temperature: float = 1.0) -> Choose:
    """Tokens drawn from softmax(logits / temperature)."""

    def choose(logits: Tensor) -> Tensor:
        return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]

    return choose


@torch.no_grad()
def decode(model: Transformer, prefix: Tensor, count: int, choose: Choose = most_likely) -> Tensor:
    """Go on from prefixes [B, T] by `count` tokens [B, count], each chosen from what stands before it.

    The model is put into evaluation mode for it.
    """
    training = model.training
    model.eval()
    cache, tokens, found = Cache(), prefix, []
    for _ in range(count):
        tokens = choose(model(tokens, cache)[:, -1])[:, None]
        found.append(tokens)
    model.train(training)
    return torch.cat(found, 1) if found else prefix[:, :0]
