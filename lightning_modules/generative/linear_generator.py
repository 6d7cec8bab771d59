"""The generative half of a linear-Gaussian hierarchy, frozen, for posteriors to be trained against."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_modules.generative.bijectors import Bijector
from lightning_modules.generative.generator import Generator
from lightning_modules.generative.layers import DiagonalGaussian, standard_normal
from lightning_modules.generative.partition import BlockPartition


class _LinearBijector:
    """z = c + M eps."""

    def __init__(self, c: Tensor, M: Tensor) -> None:
        self.c, self.M = c, M

    def forward(self, eps: Tensor) -> Tensor:
        found: Tensor = self.c + eps @ self.M.mT
        return found

    def inverse(self, z: Tensor) -> Tensor:
        found: Tensor = torch.linalg.solve(self.M, (z - self.c).mT).mT
        return found

    def log_abs_det(self, eps: Tensor | None = None) -> Tensor:
        found: Tensor = torch.linalg.slogdet(self.M)[1]
        return found


class LinearGaussianGenerator(Generator):
    """A `linear_gaussian.LinearGaussianHierarchy` as a generator without parameters; its settings are explained there."""

    def __init__(
        self,
        partition: BlockPartition,
        prior: Tensor,
        s: Tensor,
        shift: Tensor,
        M: Tensor,
        W: Tensor,
        V: Tensor,
        r: float,
    ) -> None:
        super().__init__(partition, [len(M)] * len(partition), binary=False)
        for name, value in {"prior": prior, "shift": shift, "M": M, "W": W, "V": V, "s": s}.items():
            self.register_buffer(f"_{name}", value.clone())
        self._log_sd = 0.5 * math.log(r)

    def conditional(self, layer: int, z_before: Tensor | None, like: Tensor) -> tuple[DiagonalGaussian, Bijector]:
        """See `Generator`."""
        if z_before is None:
            law = standard_normal(self.latent_dims[0], like)
            return law, _LinearBijector(like.new_zeros(()), self._buffer("M"))
        law = DiagonalGaussian(z_before @ self._buffer("prior").mT, self._buffer("s").log())
        return law, _LinearBijector(z_before @ self._buffer("shift").mT, self._buffer("M"))

    def log_likelihood(self, layer: int, block: Tensor, z: Tensor, before: Tensor | None) -> Tensor:
        """See `Generator`."""
        return DiagonalGaussian(
            self.mean(layer, z, before), z.new_tensor(self._log_sd).expand(block.shape[-1])
        ).log_prob(block)

    def mean(self, layer: int, z: Tensor, before: Tensor | None) -> Tensor:
        """See `Generator`."""
        found: Tensor = z @ self._buffer("W").mT
        if before is not None:
            found = found + before @ self._buffer("V").mT
        return found

    def draw(self, layer: int, z: Tensor, before: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """See `Generator`."""
        mean = self.mean(layer, z, before)
        noise = torch.randn(mean.shape, generator=generator, device=z.device, dtype=z.dtype)
        found: Tensor = mean + math.exp(self._log_sd) * noise
        return found

    def _buffer(self, name: str) -> Tensor:
        found: Tensor = getattr(self, f"_{name}")
        return found
