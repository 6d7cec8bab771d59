"""Unnormalised models with a learnt log-partition, and Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.errors import InputError

Function = Callable[[Tensor], Tensor]

_ROWS = 4096


@dataclass(frozen=True)
class GaussianNoise:
    """A Gaussian that can be sampled and evaluated.

    Args:
        mean: [d].
        scale: [d] standard deviations, or [d, d] the lower Cholesky factor of the covariance.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def standard(cls, dimension: int) -> GaussianNoise:
        """N(0, I)."""
        return cls(torch.zeros(dimension), torch.ones(dimension))

    @classmethod
    def fit(cls, x: Tensor, diagonal: bool = False, floor: float = 1e-6) -> GaussianNoise:
        """Fit by maximum likelihood.

        Args:
            x: [n, ...] rows, flattened; n at least 2.
            diagonal: whether coordinates are independent.
            floor: added to every variance, as a share of the mean one, so that a constant coordinate does no harm.

        Raises:
            InputError: for fewer than two rows, or rows that are not finite.
        """
        if len(x) < 2 or not bool(torch.isfinite(x).all()):
            raise InputError(f"x: {len(x)} rows, finite or not; give two or more finite ones to fit the noise to")
        rows = x.flatten(1).double()
        mean = rows.mean(0)
        centred = rows - mean
        variances = centred.square().mean(0)
        least = floor * float(variances.mean()) or floor
        if diagonal:
            return cls(mean.to(x.dtype), (variances + least).sqrt().to(x.dtype))
        covariance = centred.mT @ centred / len(rows) + least * torch.eye(rows.shape[1], dtype=torch.double)
        return cls(mean.to(x.dtype), torch.linalg.cholesky(covariance).to(x.dtype))

    @property
    def dimension(self) -> int:
        """Number of coordinates d."""
        return len(self.mean)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw [n, d]."""
        drawn = torch.randn(n, self.dimension, generator=generator, dtype=self.mean.dtype).to(self.mean.device)
        return self.mean + (drawn * self.scale if self.scale.dim() == 1 else drawn @ self.scale.mT)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density [...] of x [..., d]."""
        centred = x - self.mean
        if self.scale.dim() == 1:
            z, log_scale = centred / self.scale, self.scale.log().sum()
        else:
            flat = torch.linalg.solve_triangular(self.scale, centred.reshape(-1, self.dimension).mT, upper=False)
            z, log_scale = flat.mT.reshape(x.shape), self.scale.diagonal().log().sum()
        return -z.square().sum(-1) / 2 - log_scale - self.dimension / 2 * math.log(2 * math.pi)

    def natural(self) -> Tensor:
        """Return Sigma^-1 mean [d]."""
        if self.scale.dim() == 1:
            return self.mean / self.scale.square()
        return torch.cholesky_solve(self.mean[:, None], self.scale)[:, 0]


class UnnormalisedModel(nn.Module):
    """A density up to its normaliser, of which the model holds an estimate, `log_partition`, that is learnt with the rest."""

    log_partition: nn.Parameter

    def log_density(self, x: Tensor) -> Tensor:
        """Return [n] for x [n, d]: unnormalised, minus the learnt log-partition."""
        raise NotImplementedError

    def log_ratio(self, x: Tensor, log_noise: Tensor) -> Tensor:
        """Return log p - log q [n] of x [n, d], given log q [n]."""
        return self.log_density(x) - log_noise

    @torch.no_grad()
    def log_normalizer(
        self, noise: GaussianNoise, n: int, generator: torch.Generator | None = None
    ) -> tuple[float, float]:
        """Estimate the log of the integral of exp(log_density), 0 where the learnt log-partition is right.

        Args:
            noise: what is sampled.
            n: samples.
            generator: of them; None: a new one of seed 0.

        Returns:
            The estimate by importance sampling, and its effective sample size (sum w)^2 / sum w^2, from 1 to n. Where that is
            tens, the estimate is little worth, and too low more often than not.

        Raises:
            InputError: for n below 1.
        """
        if n < 1:
            raise InputError(f"n: {n} samples are asked for; give 1 or more")
        generator = generator or torch.Generator().manual_seed(0)
        drawn = noise.sample(n, generator)
        log_w = torch.cat([self.log_ratio(part, noise.log_prob(part)) for part in torch.split(drawn, _ROWS)]).double()
        total = torch.logsumexp(log_w, 0)
        return float(total) - math.log(n), float((2 * total - torch.logsumexp(2 * log_w, 0)).exp())


class ExponentialFamilyModel(UnnormalisedModel):
    """log p(x) = theta . T(x) - alpha + log h(x); parameters tau = (theta, alpha), alpha = log_partition.

    Args:
        statistics: T, from [n, d] to [n, k].
        log_base: log h, from [n, d] to [n].
        theta: [k] to start from.
        log_partition: alpha to start from.

    Source: arXiv 2110.11271.
    """

    def __init__(self, statistics: Function, log_base: Function, theta: Tensor, log_partition: float = 0.0) -> None:
        super().__init__()
        self._statistics, self._log_base = statistics, log_base
        self.theta = nn.Parameter(theta.detach().clone())
        self.log_partition = nn.Parameter(torch.tensor(float(log_partition), dtype=theta.dtype))

    @property
    def tau(self) -> Tensor:
        """(theta, alpha) [k+1], detached."""
        return torch.cat([self.theta.detach(), self.log_partition.detach()[None]])

    def extended(self, x: Tensor) -> Tensor:
        """Return (T(x), -1) [n, k+1], the gradient of the log ratio."""
        found = self._statistics(x)
        return torch.cat([found, -torch.ones_like(found[:, :1])], 1)

    def log_density(self, x: Tensor) -> Tensor:
        """Return [n]."""
        return self._statistics(x) @ self.theta - self.log_partition + self._log_base(x)


class EnergyModel(UnnormalisedModel):
    """log p(x) = f(x) - c, or log q(x) + f(x) - c with a base density q.

    Args:
        network: f, from [n, d] to [n, 1] or [n].
        log_base: log q; None: none. With the noise itself training starts at p = q where f starts at 0, and `log_ratio` is
            f - c, without the cancellation of two large logarithms.

    Source: the form f - c is arXiv 2110.11271's experiment with images (from memory).
    """

    def __init__(self, network: nn.Module, log_base: Function | None = None) -> None:
        super().__init__()
        self.network, self._log_base = network, log_base
        self.log_partition = nn.Parameter(torch.zeros(()))

    def log_density(self, x: Tensor) -> Tensor:
        """Return [n]."""
        found = self._energy(x)
        return found if self._log_base is None else found + self._log_base(x)

    def log_ratio(self, x: Tensor, log_noise: Tensor) -> Tensor:
        """Return log p - log q [n]; a base is taken to be the noise."""
        found = self._energy(x)
        return found - log_noise if self._log_base is None else found

    def _energy(self, x: Tensor) -> Tensor:
        found: Tensor = self.network(x)
        return found.reshape(len(x)) - self.log_partition


def mlp(dimension: int, width: int, depth: int, generator: torch.Generator) -> nn.Sequential:
    """Make depth hidden SiLU layers; torch's usual law for the weights, but a last layer of zero, so that f starts at 0."""
    sizes = [dimension, *[width] * depth]
    layers: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:], strict=False):
        layers += [drawn(_blank(nn.Linear, before, after), generator), nn.SiLU()]
    return nn.Sequential(*layers, _zero(sizes[-1]))


def convolutions(channels: int, side: int, width: int, depth: int, generator: torch.Generator) -> nn.Sequential:
    """Make an energy of images given as rows [n, channels side side]: depth 3x3 convolutions, each but the first halves the side."""
    layers: list[nn.Module] = [nn.Unflatten(1, (channels, side, side))]
    before = channels
    for number in range(depth):
        after = width * 2 ** min(number, 2)
        stride = 1 if number == 0 else 2
        layer = _blank(nn.Conv2d, before, after, 3, stride=stride, padding=1)
        layers += [drawn(layer, generator), nn.SiLU()]
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), _zero(before))


def drawn(layer: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw a layer's weights and bias from U(-1, 1) / sqrt(inputs)."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    bound = 1 / math.sqrt(weight[0].numel())
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


def _blank(kind: Any, *sizes: int, **options: Any) -> nn.Module:
    """Make a layer without drawing from the global random numbers."""
    layer: nn.Module = nn.utils.skip_init(kind, *sizes, **options)  # type: ignore[no-untyped-call]
    return layer


def _zero(inputs: int) -> nn.Module:
    layer = _blank(nn.Linear, inputs, 1)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
