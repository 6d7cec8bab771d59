"""The self-reflective hierarchy: a generator of blocks, and a posterior that factorises exactly as the true one does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.errors import InputError
from lightning_modules.generative.generator import Generator, NeuralGenerator
from lightning_modules.generative.latent_variable_model import LatentVariableModel, Trace, noise
from lightning_modules.generative.partition import BlockPartition
from lightning_modules.generative.posterior import NeuralPosterior, Posterior


class SelfReflectiveHierarchy(LatentVariableModel):
    """log p(x) >= E_q[sum_l log p(x_l | z_l, x_{l-1})] - sum_l E_q KL(q(eps_l | z_{l-1}, x) || p(eps_l | z_{l-1})).

    The bijections f_l are shared: prior and posterior of a layer are both evaluated at the z_{l-1} that was drawn from the
    posterior, and no Jacobian appears, since f_l cancels in KL(q(z) || p(z)) = KL(q(eps) || p(eps)). Given z_{l-2}, f_{l-1} is
    a bijection, so that z_{l-1} says what the earlier latents say: p(eps_l | eps_1, ..., eps_{l-1}, x) = p(eps_l | z_{l-1}, x).

    Args:
        generator: p(x, z).
        posterior: q(eps | x) of the same layers.

    Source: paper, the model and its objective.
    """

    def __init__(self, generator: Generator, posterior: Posterior) -> None:
        super().__init__(generator.partition, generator.binary)
        self.generator, self.posterior = generator, posterior

    def evidence(self, x: Tensor) -> Tensor:
        """[L, B, H], every layer's own view of x [B, D]."""
        return self.posterior.evidence(x)

    def trace(
        self, x: Tensor, evidence: Tensor, k: int, generator: torch.Generator | None = None, mean: bool = False
    ) -> Trace:
        """See `LatentVariableModel`."""
        blocks = torch.split(x, list(self.partition.sizes), -1)
        z_before: Tensor | None = None
        before: Tensor | None = None
        ratio = x.new_zeros(())
        kl, latents, codes, means = [], [], [], []
        for layer, block in enumerate(blocks):
            prior, bijector = self.generator.conditional(layer, z_before, x)
            law = self.posterior.conditional(layer, z_before, evidence[layer])
            eps = law.at(noise((k, len(x), self.generator.latent_dims[layer]), x, generator))
            z = bijector.forward(eps)
            kl.append(law.kl(prior).expand(k, len(x)))
            ratio = ratio + prior.log_prob(eps) - law.log_prob(eps)
            if mean:
                means.append(self.generator.mean(layer, z, before))
            latents.append(eps)
            codes.append(z)
            z_before, before = z, block
        likelihood = self.generator.total_log_likelihood(blocks, codes)
        whole = torch.cat(means, -1) if mean else None
        return Trace(likelihood, torch.stack(kl, -1), ratio, latents, codes, whole)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, list[Tensor]]:
        """Draw n examples: eps_1, z_1, x_1, then eps_2 given z_1, x_2 given z_2 and the x_1 that was generated, and so on.

        Raises:
            InputError: n is below 1.
        """
        if n < 1:
            raise InputError(f"n: {n}; give 1 or more")
        like = next(iter([*self.parameters(), *self.buffers()]))
        z_before: Tensor | None = None
        block: Tensor | None = None
        blocks, codes = [], []
        for layer, width in enumerate(self.generator.latent_dims):
            prior, bijector = self.generator.conditional(layer, z_before, like)
            z = bijector.forward(prior.at(noise((n, width), like, generator)))
            block = self.generator.draw(layer, z, block, generator)
            blocks.append(block)
            codes.append(z)
            z_before = z
        return torch.cat(blocks, -1), codes


def self_reflective(
    partition: BlockPartition,
    latent_dims: Sequence[int],
    hidden: Sequence[int] = (64, 64),
    likelihood: str = "bernoulli",
    posterior: str = "self_reflective",
    prior: str = "conditional",
    data_coupling: bool = True,
    bijector: str = "affine",
    evidence: str = "all",
    seed: int = 0,
    activation: str = "silu",
    correction: int = 0,
) -> SelfReflectiveHierarchy:
    """Make a hierarchy of perceptrons.

    Args:
        partition: of x into L blocks.
        latent_dims: N_l, one for each block.
        hidden: widths of the hidden layers of every net, at least one.
        likelihood: "bernoulli" or "gaussian".
        posterior: "self_reflective", or "independent" for q(eps_l | x).
        prior: "conditional", or "standard" for N(0, I) at every layer; with an independent posterior that is the deep latent
            Gaussian model.
        data_coupling: whether x_l depends on x_{l-1} beside z_l.
        bijector: "affine" (unit rank plus diagonal), "identity" or "spline" (needs the extra `flows`).
        evidence: what q(eps_l) sees of x, see `posterior.EVIDENCE`.
        seed: of the first weights; generator and posterior have streams of their own.
        activation: "silu", "tanh" or "relu".
        correction: number of hidden layers, as wide as the last of `hidden`, between (h_l, z_{l-1}) and the posterior's
            correction, in either family; chosen on validation digits, see the paper's page in docs/papers.

    Raises:
        InputError: for an unknown choice, or sizes that do not fit each other.

    Example:
        >>> model = self_reflective(BlockPartition.raster(784, 4), [8] * 4)
        >>> model.elbo(torch.zeros(2, 784)).kl.shape
        torch.Size([2, 4])
    """
    if not hidden or min(hidden) < 1:
        raise InputError(f"hidden: {list(hidden)}; give one or more widths of at least 1")
    if correction < 0:
        raise InputError(f"correction: {correction}; give a number of hidden layers, 0 or more")
    made = NeuralGenerator(
        partition, latent_dims, hidden, likelihood, prior, data_coupling, bijector, 2 * seed, activation
    )
    widths = (hidden[-1],) * correction
    return SelfReflectiveHierarchy(
        made, NeuralPosterior(partition, latent_dims, hidden, posterior, evidence, 2 * seed + 1, activation, widths)
    )
