"""The ladder variational autoencoder: a bottom-up pass whose estimates correct the top-down prior by their precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lightning_modules.errors import InputError
from lightning_modules.generative.latent_variable_model import LatentVariableModel, Trace, noise
from lightning_modules.generative.layers import DiagonalGaussian, Mlp, split_gaussian, standard_normal
from lightning_modules.generative.partition import BlockPartition


def merge(first: DiagonalGaussian, second: DiagonalGaussian) -> DiagonalGaussian:
    """Multiply two Gaussian densities: precisions add, means are weighted by them (equations 11 to 13)."""
    one, two = (-2 * first.log_sd).exp(), (-2 * second.log_sd).exp()
    total = one + two
    return DiagonalGaussian((first.mean * one + second.mean * two) / total, -0.5 * total.log())


class LadderVAE(LatentVariableModel):
    """z_L -> ... -> z_1 -> x, q(z_l | z_{l+1}, x) the product of the prior and a bottom-up Gaussian.

    Args:
        dimension: D, entries of binary x.
        latent_dims: N_1 (next to x) to N_L.
        hidden: widths of the hidden layers of every net.
        seed: of the first weights.

    Raises:
        InputError: a size is below 1.

    Source: Sonderby et al., "Ladder Variational Autoencoders", arXiv 1602.02282; without its batch normalisation.
    """

    def __init__(
        self, dimension: int, latent_dims: Sequence[int], hidden: Sequence[int] = (64, 64), seed: int = 0
    ) -> None:
        if not latent_dims or min(latent_dims) < 1:
            raise InputError(f"latent_dims: {list(latent_dims)}; give sizes of at least 1")
        super().__init__(BlockPartition([dimension]), binary=True)
        self.latent_dims = tuple(latent_dims)
        source = torch.Generator().manual_seed(seed)
        ups, widths = [dimension, *[hidden[-1]] * len(latent_dims)], latent_dims
        self.up = nn.ModuleList([Mlp([n], hidden[:-1], hidden[-1], source, scale=1.0) for n in ups[:-1]])
        self.heads = nn.ModuleList([Mlp([hidden[-1]], (), 2 * n, source) for n in widths])
        self.priors = nn.ModuleList([Mlp([widths[i + 1]], hidden, 2 * n, source) for i, n in enumerate(widths[:-1])])
        self.decoder = Mlp([widths[0]], hidden, dimension, source)

    def evidence(self, x: Tensor) -> Tensor:
        """Bottom-up features [L, B, H]."""
        found = []
        for net in self.up:
            x = nn.functional.silu(net(x))
            found.append(x)
        return torch.stack(found)

    def trace(
        self, x: Tensor, evidence: Tensor, k: int, generator: torch.Generator | None = None, mean: bool = False
    ) -> Trace:
        """See `LatentVariableModel`; codes come first layer first, and are their own base latents."""
        kl, codes, ratio = [], [], x.new_zeros(())
        z: Tensor | None = None
        for layer in reversed(range(len(self.latent_dims))):
            width = self.latent_dims[layer]
            prior = standard_normal(width, x) if z is None else split_gaussian(self.priors[layer](z))
            upward = split_gaussian(self.heads[layer](evidence[layer]))
            law = upward if z is None else merge(upward, prior)
            z = law.at(noise((k, len(x), width), x, generator))
            kl.append(law.kl(prior).expand(k, len(x)))
            ratio = ratio + prior.log_prob(z) - law.log_prob(z)
            codes.append(z)
        codes.reverse()
        logits = self.decoder(codes[0])
        likelihood = (x * logits - softplus(logits)).sum(-1)
        return Trace(likelihood, torch.stack(kl[::-1], -1), ratio, codes, codes, logits.sigmoid() if mean else None)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, list[Tensor]]:
        """Draw from the top down."""
        if n < 1:
            raise InputError(f"n: {n}; give 1 or more")
        like, codes = next(self.parameters()), []
        z: Tensor | None = None
        for layer in reversed(range(len(self.latent_dims))):
            width = self.latent_dims[layer]
            prior = standard_normal(width, like) if z is None else split_gaussian(self.priors[layer](z))
            z = prior.at(noise((n, width), like, generator))
            codes.append(z)
        mean = self.decoder(codes[-1]).sigmoid()
        uniform = torch.rand(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return (uniform < mean).to(mean.dtype), codes[::-1]
