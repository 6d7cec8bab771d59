"""The LightningModules that `shiftlab train` and `shiftlab tune` take by import path: constructors of plain values."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from lightning_modules.errors import InputError
from lightning_modules.generative.baselines import ARMS, build_arm
from lightning_modules.generative.hierarchy import self_reflective
from lightning_modules.generative.latent_variable_model import ElboTerms
from lightning_modules.generative.partition import BlockPartition
from lightning_modules.generative.posterior import EVIDENCE, FAMILIES
from lightning_modules.generative.training import VariationalTraining
from lightning_modules.hyperparameters import Choice, IntLogUniform, LogUniform, Uniform


class SelfReflectiveVAE(VariationalTraining):
    """The self-reflective variational autoencoder of equal layers, over `hierarchy.SelfReflectiveHierarchy`.

    Args:
        pixels: D, entries of x.
        blocks: L; x is split in raster order.
        latents: N of every layer.
        width: of the hidden layers.
        depth: number of hidden layers of every net but the posterior's corrections.
        correction: number of hidden layers of these, see `hierarchy.self_reflective`.
        posterior: "self_reflective", or "independent" for q(eps_l | x).
        prior: "conditional", or "standard" for N(0, I) at every layer.
        bijector: "affine", "identity" or "spline" (needs the extra `flows`).
        evidence: what q(eps_l) sees of x.
        data_coupling: whether a block depends on the previous one beside its codes.
        likelihood: "bernoulli" or "gaussian".
        lr: Adam's, falling along a cosine.
        warmup: share of the steps over which the KL is warmed up.
        seed: of the first weights and the noise.

    Raises:
        InputError: a setting is unknown or out of range.
    """

    def __init__(
        self,
        pixels: int = 784,
        blocks: Annotated[int, Choice((1, 2, 4, 7, 10))] = 4,
        latents: Annotated[int, IntLogUniform(2, 32)] = 8,
        width: Annotated[int, IntLogUniform(16, 256)] = 64,
        depth: Annotated[int, Choice((1, 2, 3))] = 2,
        correction: Annotated[int, Choice((0, 1, 2))] = 0,
        posterior: Annotated[str, Choice(FAMILIES)] = "self_reflective",
        prior: Annotated[str, Choice(("conditional", "standard"))] = "conditional",
        bijector: Annotated[str, Choice(("affine", "identity"))] = "affine",
        evidence: Annotated[str, Choice(EVIDENCE[:2])] = "all",
        data_coupling: bool = True,
        likelihood: str = "bernoulli",
        lr: Annotated[float, LogUniform(3e-4, 1e-2)] = 2e-3,
        warmup: Annotated[float, Uniform(0.0, 0.6)] = 0.375,
        seed: int = 0,
    ) -> None:
        if width < 1 or depth < 1:
            raise InputError(f"width, depth: {width}, {depth}; give 1 or more of each")
        partition = BlockPartition.raster(pixels, blocks)
        model = self_reflective(
            partition,
            [latents] * blocks,
            (width,) * depth,
            likelihood,
            posterior,
            prior,
            data_coupling,
            bijector,
            evidence,
            seed,
            correction=correction,
        )
        super().__init__(model, lr, warmup, seed=seed)

    def elbo(self, x: Tensor, n_samples: int = 1, generator: torch.Generator | None = None) -> ElboTerms:
        """ELBO of binary or real x [B, D]; see `LatentVariableModel.elbo`."""
        return self.model.elbo(x, n_samples, generator)

    def log_weights(self, x: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
        """Log importance weights [k, B]; see `LatentVariableModel.log_weights`."""
        return self.model.log_weights(x, k, generator)

    def log_likelihood(
        self, x: Tensor, k: int = 1000, chunk: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Importance bound of log p(x) [B]; see `LatentVariableModel.log_likelihood`."""
        return self.model.log_likelihood(x, k, chunk, generator)

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, list[Tensor]]:
        """Draw x [n, D] and its codes; see `LatentVariableModel.sample`."""
        return self.model.sample(n, generator)

    def reconstruct(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean of x [B, D] given its codes; see `LatentVariableModel.reconstruct`."""
        return self.model.reconstruct(x, generator)

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Base latents and codes of x [B, D]; see `LatentVariableModel.encode`."""
        return self.model.encode(x, generator)


class Baseline(VariationalTraining):
    """One of the models that the self-reflective autoencoder is compared with, by name.

    Args:
        arm: a name in `baselines.ARMS`.
        pixels: D, entries of x.
        blocks: of the hierarchies; layers of the ladder.
        latents: of a layer; a model of one layer has `blocks` times as many.
        width: of the hidden layers.
        lr: Adam's, falling along a cosine.
        warmup: share of the steps over which the KL is warmed up.
        seed: of the first weights and the noise.

    Raises:
        InputError: a setting is unknown or out of range.
    """

    def __init__(
        self,
        arm: Annotated[str, Choice(ARMS)] = "one_layer",
        pixels: int = 784,
        blocks: int = 4,
        latents: Annotated[int, IntLogUniform(2, 32)] = 8,
        width: Annotated[int, IntLogUniform(16, 256)] = 64,
        lr: Annotated[float, LogUniform(3e-4, 1e-2)] = 2e-3,
        warmup: Annotated[float, Uniform(0.0, 0.6)] = 0.375,
        seed: int = 0,
    ) -> None:
        super().__init__(build_arm(arm, pixels, blocks, latents, width, seed), lr, warmup, seed=seed)
