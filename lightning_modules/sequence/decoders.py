"""Decoders made from a seed: the transformer with attention, or with state-space mixers or experts in its blocks."""

from __future__ import annotations

import math
from typing import Literal

import torch

from lightning_modules.errors import InputError
from lightning_modules.sequence.experts import ExpertsConfig, SparseExperts
from lightning_modules.sequence.mamba import Mamba
from lightning_modules.sequence.transformer import Block, Transformer, TransformerConfig

Mixer = Literal["attention", "mamba"]
MIXERS = ("attention", "mamba")


def make_decoder(
    config: TransformerConfig,
    mixer: Mixer = "attention",
    state: int = 16,
    seed: int = 0,
    experts: ExpertsConfig | None = None,
) -> Transformer:
    """Make a decoder whose first weights come from `seed` alone.

    Args:
        config: sizes and choices.
        mixer: of positions: "attention" or "mamba".
        state: of "mamba".
        seed: of the first weights.
        experts: in the place of every block's feed-forward network; None: dense networks. `watched` and `router_loss` of
            `lightning_modules.sequence.experts` bring their balance into a loss.

    Raises:
        InputError: an unknown mixer, or taps that "mamba" has no use for.
    """
    if mixer not in MIXERS:
        raise InputError(f"mixer: unknown {mixer!r}; choose from {', '.join(MIXERS)}")
    if mixer == "mamba" and config.taps > 1:
        raise InputError(f"taps: are {config.taps}, but mamba has a convolution of its own; give 1")
    generator = torch.Generator().manual_seed(seed)
    if mixer == "attention" and experts is None:
        return Transformer(config, generator)
    blocks = []
    for _ in range(config.layers):
        mixing = Mamba(config, state, generator=generator) if mixer == "mamba" else None
        blocks.append(Block(config, mixing, None if experts is None else _experts(config, experts, generator)))
    return Transformer(config, generator, blocks)


def _experts(config: TransformerConfig, experts: ExpertsConfig, generator: torch.Generator) -> SparseExperts:
    residual = config.init_std / math.sqrt(2 * config.layers)
    return SparseExperts(config.width, experts, config.feed_forward, config.init_std, residual, generator)
