"""What a decoder keeps of the positions it has seen, so that it need not go through them again."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Cache:
    """Keys and values of the positions seen so far, by layer [B, H, T, D]; a call of the transformer adds to it.

    `recent` holds, by layer, the last inputs [B, taps - 1, W] of what mixes neighbouring positions.
    """

    length: int = 0
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    recent: dict[int, Tensor] = field(default_factory=dict)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add positions of a layer; returns all of that layer's."""
        if layer < len(self.layers):
            before = self.layers[layer]
            keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
            self.layers[layer] = keys, values
        else:
            self.layers.append((keys, values))
        return keys, values

    def select(self, rows: Tensor) -> Cache:
        """Go on with some of the sequences, or with copies of them."""
        layers = [(keys[rows], values[rows]) for keys, values in self.layers]
        return Cache(self.length, layers, {layer: inputs[rows] for layer, inputs in self.recent.items()})
