"""A short causal mix of neighbouring positions, put before attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.sequence.cache import Cache


class CausalTaps(nn.Module):
    """y_t = sum over j < taps of w_j * x_{t-j}, channel by channel; what stands before the first position is 0.

    With two taps a position sees its predecessor without attention having to find it: a value is next to its key at once.
    All taps begin as 1 / sqrt(taps), which keeps the scale of independent inputs.

    Args:
        width: W, channels.
        taps: positions, its own and those before it.

    Source: field standard (a depthwise causal convolution).
    """

    def __init__(self, width: int, taps: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((taps, width), taps**-0.5))

    def forward(self, x: Tensor, layer: int = 0, cache: Cache | None = None) -> Tensor:
        """Mix positions: [B, T, W] -> [B, T, W]."""
        taps, time = len(self.weight), x.shape[1]
        before = None if cache is None else cache.recent.get(layer)
        if before is None:
            before = x.new_zeros(len(x), taps - 1, x.shape[2])
        seen = torch.cat([before, x], 1)
        if cache is not None:
            cache.recent[layer] = seen[:, time:]
        windows = [self.weight[j] * seen[:, taps - 1 - j : taps - 1 - j + time] for j in range(taps)]
        return torch.stack(windows).sum(0)
