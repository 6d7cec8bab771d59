"""Decoders made from a seed: the transformer with attention, or with state-space mixers in its place."""

from __future__ import annotations

from typing import Literal

import torch

from lightning_modules.errors import InputError
from lightning_modules.sequence.mamba import Mamba
from lightning_modules.sequence.transformer import Block, Transformer, TransformerConfig

Mixer = Literal["attention", "mamba"]
MIXERS = ("attention", "mamba")


def make_decoder(config: TransformerConfig, mixer: Mixer = "attention", state: int = 16, seed: int = 0) -> Transformer:
    """Make a decoder whose first weights come from `seed` alone.

    Args:
        config: sizes and choices.
        mixer: of positions: "attention" or "mamba".
        state: of "mamba".
        seed: of the first weights.

    Raises:
        InputError: an unknown mixer.
    """
    if mixer not in MIXERS:
        raise InputError(f"mixer: unknown {mixer!r}; choose from {', '.join(MIXERS)}")
    generator = torch.Generator().manual_seed(seed)
    if mixer == "attention":
        return Transformer(config, generator)
    blocks = [Block(config, Mamba(config, state, generator=generator)) for _ in range(config.layers)]
    return Transformer(config, generator, blocks)
