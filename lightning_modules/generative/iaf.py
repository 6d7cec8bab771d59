"""The inverse autoregressive flow baseline: one layer of latents, the posterior a Gaussian pushed through MADEs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lightning_modules.errors import InputError
from lightning_modules.generative.bijectors import import_zuko
from lightning_modules.generative.latent_variable_model import LatentVariableModel, Trace, noise
from lightning_modules.generative.layers import Mlp, split_gaussian, standard_normal
from lightning_modules.generative.partition import BlockPartition
from lightning_modules.networks import initialise


class InverseAutoregressiveVAE(LatentVariableModel):
    """z ~ N(0, I), x | z ~ Bernoulli; q(z | x) = MADEs that see h(x), applied to a diagonal Gaussian of x.

    The KL has no closed form and is the sample's log q(z) - log p(z).

    Args:
        dimension: D, entries of binary x.
        latents: N, 2 or more.
        hidden: widths of the hidden layers of every net.
        n_made: MADEs of the posterior.
        seed: of the first weights.

    Raises:
        InputError: zuko is not installed, or there are fewer than two latents.

    Source: Kingma et al., "Improving Variational Inference with Inverse Autoregressive Flow", arXiv 1606.04934.
    """

    def __init__(
        self, dimension: int, latents: int, hidden: Sequence[int] = (64, 64), n_made: int = 2, seed: int = 0
    ) -> None:
        zuko = import_zuko()
        if latents < 2:
            raise InputError(f"latents: {latents}; an autoregressive posterior needs 2 or more")
        super().__init__(BlockPartition([dimension]), binary=True)
        source = torch.Generator().manual_seed(seed)
        self.latents = latents
        self.encoder = Mlp([dimension], hidden[:-1], hidden[-1], source, scale=1.0)
        self.head = Mlp([hidden[-1]], (), 2 * latents, source)
        self.decoder = Mlp([latents], hidden, dimension, source)
        with torch.random.fork_rng(devices=[]):  # zuko draws first weights from the global generator
            orders = [torch.arange(latents) if i % 2 == 0 else torch.arange(latents).flip(0) for i in range(n_made)]
            self.mades = nn.ModuleList(
                [
                    zuko.flows.MaskedAutoregressiveTransform(
                        latents, hidden[-1], order=order, hidden_features=tuple(hidden), activation=nn.SiLU
                    )
                    for order in orders
                ]
            )
        initialise(self.mades, source)

    def evidence(self, x: Tensor) -> Tensor:
        """h(x) [B, H]."""
        found: Tensor = nn.functional.silu(self.encoder(x))
        return found

    def trace(
        self, x: Tensor, evidence: Tensor, k: int, generator: torch.Generator | None = None, mean: bool = False
    ) -> Trace:
        """See `LatentVariableModel`; eps is what goes into the MADEs."""
        law = split_gaussian(self.head(evidence))
        eps = law.at(noise((k, len(x), self.latents), x, generator))
        z, log_q = eps, law.log_prob(eps)
        for made in self.mades:
            z, found = made(evidence).call_and_ladj(z)
            log_q = log_q - found
        ratio = standard_normal(self.latents, x).log_prob(z) - log_q
        logits = self.decoder(z)
        likelihood = (x * logits - softplus(logits)).sum(-1)
        return Trace(likelihood, -ratio[..., None], ratio, [eps], [z], logits.sigmoid() if mean else None)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, list[Tensor]]:
        """Draw z ~ N(0, I), then x."""
        if n < 1:
            raise InputError(f"n: {n}; give 1 or more")
        z = noise((n, self.latents), next(self.parameters()), generator)
        mean = self.decoder(z).sigmoid()
        uniform = torch.rand(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return (uniform < mean).to(mean.dtype), [z]
