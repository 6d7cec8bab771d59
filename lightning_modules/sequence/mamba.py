"""A selective state-space mixer of positions, to be put in the place of attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_modules.errors import InputError
from lightning_modules.sequence.cache import Cache
from lightning_modules.sequence.transformer import TransformerConfig, linear

_FASTEST, _SLOWEST = 1e-1, 1e-3
"""Steps delta at the start are spread between these on a log scale."""


class Mamba(nn.Module):
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, y_t = C_t h_t + D u_t, with delta, B and C made of the input u.

    u is a linear map of x to `expand` times its width, then a causal convolution of each channel, then SiLU. y is gated by SiLU of
    a second such map and joined by a linear one. Positions are a plain loop: meant for short sequences.

    Args:
        config: of the transformer.
        state: N, numbers of a channel that it remembers.
        conv: positions that the convolution sees.
        expand: channels over width.
        generator: of the convolution's first weights; the linear maps are set by the transformer.

    Raises:
        InputError: a size below 1.

    Source: arXiv 2312.00752, algorithm 2 and section 3.6.
    """

    def __init__(
        self,
        config: TransformerConfig,
        state: int = 16,
        conv: int = 4,
        expand: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("state", state), ("conv", conv), ("expand", expand)):
            if value < 1:
                raise InputError(f"{name}: is {value}; give 1 or more")
        channels, rank = expand * config.width, math.ceil(config.width / 16)
        self._sizes = [rank, state, state]
        self.into = linear(config.width, 2 * channels)
        self.kernel = nn.Parameter(torch.empty(channels, conv))
        self.kernel_bias = nn.Parameter(torch.zeros(channels))
        self.selection = linear(channels, sum(self._sizes), bias=False)
        self.step = linear(rank, channels, bias=False)
        self.log_rates = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(channels, 1))  # A = -exp(this)
        self.skip = nn.Parameter(torch.ones(channels))
        steps = torch.logspace(math.log10(_SLOWEST), math.log10(_FASTEST), channels)
        self.step_bias = nn.Parameter(steps.expm1().log())  # softplus of it is `steps`
        self.out = linear(channels, config.width)
        with torch.no_grad():
            self.kernel.uniform_(-(conv**-0.5), conv**-0.5, generator=generator)

    def forward(self, x: Tensor, layer: int = 0, cache: Cache | None = None) -> Tensor:
        """Mix positions: [B, T, W] -> [B, T, W]."""
        new = x.shape[1]
        if cache is not None:  # sequences are short: what was seen is kept, and gone through again
            x = cache.extend(layer, x[:, None], x[:, None, :, :0])[0][:, 0]
        u, gate = self.into(x).chunk(2, -1)
        u = nn.functional.silu(self._convolved(u))
        y = self._scanned(u) + self.skip * u
        found: Tensor = self.out(y * nn.functional.silu(gate))
        return found[:, -new:]

    def _convolved(self, u: Tensor) -> Tensor:
        """Each channel with the positions before it [B, T, E]."""
        width = self.kernel.shape[1]
        windows = nn.functional.pad(u, (0, 0, width - 1, 0)).unfold(1, width, 1)  # [B, T, E, conv]
        return (windows * self.kernel).sum(-1) + self.kernel_bias

    def _scanned(self, u: Tensor) -> Tensor:
        rank, b, c = self.selection(u).split(self._sizes, -1)
        delta = nn.functional.softplus(self.step(rank) + self.step_bias)[..., None]  # [B, T, E, 1]
        kept = (-delta * self.log_rates.exp()).exp()  # [B, T, E, N]
        entering = delta * u[..., None] * b[:, :, None]
        state, found = torch.zeros_like(entering[:, 0]), []
        for time in range(u.shape[1]):
            state = kept[:, time] * state + entering[:, time]
            found.append((state * c[:, time, None]).sum(-1))
        return torch.stack(found, 1)
