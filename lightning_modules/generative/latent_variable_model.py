"""What every model here can do: the ELBO, importance bounds of the likelihood, samples and reconstructions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.errors import InputError
from lightning_modules.generative.partition import BlockPartition, check_data

_CHUNK_NUMBERS = 1 << 22
"""Samples times examples times entries of x that are computed at once by default (16 MiB in float32)."""


@dataclass(frozen=True)
class ElboTerms:
    """The two parts of the ELBO.

    Args:
        reconstruction: [B] mean over samples of log p(x | z).
        kl: [B, L] of each layer, closed form where there is one, mean over samples of what the layer depends on.
    """

    reconstruction: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """[B], in nats."""
        return self.reconstruction - self.kl.sum(1)


@dataclass(frozen=True)
class Trace:
    """K passes through the posterior.

    Args:
        log_likelihood: [K, B] log p(x | z).
        kl: [K, B, L].
        log_ratio: [K, B] log p(eps) - log q(eps | x).
        eps: of every layer, [K, B, N_l].
        z: of every layer, [K, B, N_l].
        mean: [K, B, D] of x given z, and given the data's own previous block where blocks depend on it; None where not asked.
    """

    log_likelihood: Tensor
    kl: Tensor
    log_ratio: Tensor
    eps: list[Tensor]
    z: list[Tensor]
    mean: Tensor | None = None

    @property
    def log_weights(self) -> Tensor:
        """[K, B] log of p(x, eps) / q(eps | x)."""
        return self.log_likelihood + self.log_ratio


class LatentVariableModel(nn.Module, ABC):
    """A model p(x, z) with an amortised posterior.

    Args:
        partition: of the entries of x.
        binary: whether x must be binary.
    """

    def __init__(self, partition: BlockPartition, binary: bool) -> None:
        super().__init__()
        self.partition, self.binary = partition, binary

    @abstractmethod
    def evidence(self, x: Tensor) -> Tensor:
        """What posteriors read of x [B, D]; computed once per x, whatever the number of samples."""

    @abstractmethod
    def trace(
        self, x: Tensor, evidence: Tensor, k: int, generator: torch.Generator | None = None, mean: bool = False
    ) -> Trace:
        """Pass x [B, D] through the posterior k times.

        Args:
            x: data.
            evidence: of `evidence`.
            k: number of samples of the latents for each example.
            generator: of the noise; None: torch's global one.
            mean: whether to compute the mean of x, too.
        """

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, list[Tensor]]:
        """Draw n examples by ancestral sampling: x [n, D] and the codes [n, N_l] of every layer."""

    def elbo(self, x: Tensor, n_samples: int = 1, generator: torch.Generator | None = None) -> ElboTerms:
        """Estimate the evidence lower bound of each example.

        Args:
            x: [B, D].
            n_samples: of the latents.
            generator: of the noise; None: torch's global one.

        Raises:
            InputError: x is not what the likelihood needs, or n_samples is below 1.
        """
        self.check(x, n_samples, "n_samples")
        trace = self.trace(x, self.evidence(x), n_samples, generator)
        return ElboTerms(trace.log_likelihood.mean(0), trace.kl.mean(0))

    def log_weights(self, x: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw log importance weights [k, B], log p(x, eps) - log q(eps | x); their mean is unbiased for the ELBO.

        Args:
            x: [B, D].
            k: number of samples.
            generator: of the noise; None: torch's global one.

        Raises:
            InputError: x is not what the likelihood needs, or k is below 1.
        """
        self.check(x, k)
        return self.trace(x, self.evidence(x), k, generator).log_weights

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, k: int = 1000, chunk: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Estimate log p(x) [B] from below by importance sampling: logsumexp of k log weights, minus log k.

        Args:
            x: [B, D].
            k: number of samples; 1000 in the paper.
            chunk: how many of them at once; 0: as many as a few tens of MiB hold.
            generator: of the noise; None: torch's global one.

        Raises:
            InputError: x is not what the likelihood needs, k is below 1 or chunk below 0.

        Source: Burda et al., "Importance Weighted Autoencoders", arXiv 1509.00519.
        """
        self.check(x, k)
        if chunk < 0:
            raise InputError(f"chunk: {chunk}; give 1 or more, or 0 for a size that fits")
        chunk = chunk or max(1, _CHUNK_NUMBERS // max(1, x.numel()))
        evidence = self.evidence(x)
        total = x.new_full((len(x),), -math.inf)
        for start in range(0, k, chunk):
            found = self.trace(x, evidence, min(chunk, k - start), generator).log_weights
            total = torch.logaddexp(total, found.logsumexp(0))
        return total - math.log(k)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode x [B, D] and decode it: the mean of x given one draw of its codes, in [0, 1] for binary x.

        Where blocks depend on the previous block, that is the data's.

        Raises:
            InputError: x is not what the likelihood needs.
        """
        self.check(x, 1)
        mean = self.trace(x, self.evidence(x), 1, generator, mean=True).mean
        assert mean is not None
        return mean[0]

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Draw base latents and codes of x [B, D] from the posterior: eps and z, [B, N_l] of every layer.

        Raises:
            InputError: x is not what the likelihood needs.
        """
        self.check(x, 1)
        trace = self.trace(x, self.evidence(x), 1, generator)
        return [e[0] for e in trace.eps], [z[0] for z in trace.z]

    def check(self, x: Tensor, k: int, name: str = "k") -> None:
        """Raise InputError where x is not what the likelihood needs, or the number of samples is below 1."""
        if k < 1:
            raise InputError(f"{name}: {k}; give 1 or more samples")
        check_data(x, self.partition, self.binary)


def noise(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal noise on the device and of the type of a tensor."""
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
