"""The generative half p(x, z) of a hierarchy whose every layer makes one block of x."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lightning_modules.errors import InputError
from lightning_modules.generative.bijectors import (
    BINS,
    AffineRankOneBijector,
    Bijector,
    IdentityBijector,
    SplineCouplingBijector,
    import_zuko,
)
from lightning_modules.generative.layers import DiagonalGaussian, Mlp, StackedMlp, pad, split_gaussian, standard_normal
from lightning_modules.generative.partition import BlockPartition

BijectorKind = Literal["affine", "identity", "spline"]
Prior = Literal["conditional", "standard"]


class Generator(nn.Module, ABC):
    """p(z_1) p(x_1 | z_1) prod_l p(z_l | z_{l-1}) p(x_l | z_l, x_{l-1}), with z_l = f_l(eps_l; z_{l-1}).

    Args:
        partition: of x.
        latent_dims: N_l of every layer.
        binary: whether x is binary.

    Raises:
        InputError: there is not one latent size of at least 1 for every block.
    """

    def __init__(self, partition: BlockPartition, latent_dims: Sequence[int], binary: bool) -> None:
        super().__init__()
        if len(latent_dims) != len(partition) or min(latent_dims, default=0) < 1:
            raise InputError(
                f"latent_dims: {list(latent_dims)} for {len(partition)} blocks; give one size of at least 1 for every block"
            )
        self.partition, self.latent_dims, self.binary = partition, tuple(latent_dims), binary

    @abstractmethod
    def conditional(self, layer: int, z_before: Tensor | None, like: Tensor) -> tuple[DiagonalGaussian, Bijector]:
        """p(eps_l | z_{l-1}) and f_l( . ; z_{l-1}); z_before [..., N_{l-1}] is None for the first layer."""

    @abstractmethod
    def log_likelihood(self, layer: int, block: Tensor, z: Tensor, before: Tensor | None) -> Tensor:
        """log p(x_l | z_l, x_{l-1}) [K, B] of blocks [B, D_l], codes [K, B, N_l], previous blocks [B, D_{l-1}] or None."""

    def total_log_likelihood(self, blocks: Sequence[Tensor], codes: Sequence[Tensor]) -> Tensor:
        """sum_l log p(x_l | z_l, x_{l-1}) [K, B] of all blocks [B, D_l] and codes [K, B, N_l]."""
        before = [None, *blocks[:-1]]
        terms = zip(range(len(blocks)), blocks, codes, before, strict=True)
        return torch.stack([self.log_likelihood(*term) for term in terms]).sum(0)

    @abstractmethod
    def mean(self, layer: int, z: Tensor, before: Tensor | None) -> Tensor:
        """Mean [..., D_l] of x_l."""

    @abstractmethod
    def draw(self, layer: int, z: Tensor, before: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Draw x_l [..., D_l]."""


class NeuralGenerator(Generator):
    """A generator made of perceptrons: of z_{l-1} for the prior and the bijection together, residual ones for the data.

    Args:
        partition: of x.
        latent_dims: N_l of every layer.
        hidden: widths of the hidden layers of every perceptron.
        likelihood: "bernoulli" or "gaussian".
        prior: "conditional", or "standard" for eps_l ~ N(0, I) at every layer.
        data_coupling: whether x_l depends on x_{l-1} beside z_l.
        bijector: "affine", "identity" or "spline".
        seed: of the first weights.
        activation: a name in `layers.ACTIVATIONS`.

    Raises:
        InputError: for an unknown choice, latent sizes that do not fit the blocks, or splines of fewer than two latents.
    """

    _likelihoods: tuple[str, ...] = ("bernoulli", "gaussian")

    def __init__(
        self,
        partition: BlockPartition,
        latent_dims: Sequence[int],
        hidden: Sequence[int] = (64, 64),
        likelihood: str = "bernoulli",
        prior: str = "conditional",
        data_coupling: bool = True,
        bijector: str = "affine",
        seed: int = 0,
        activation: str = "silu",
    ) -> None:
        _choice("likelihood", likelihood, self._likelihoods)
        _choice("prior", prior, ("conditional", "standard"))
        _choice("bijector", bijector, ("affine", "identity", "spline"))
        super().__init__(partition, latent_dims, likelihood == "bernoulli")
        if bijector == "spline":
            import_zuko()
            if min(latent_dims) < 2:
                raise InputError("bijector: spline couplings need 2 or more latents a layer; take affine")
        self.likelihood, self.prior, self.data_coupling, self.bijector = likelihood, prior, data_coupling, bijector
        source = torch.Generator().manual_seed(seed)
        make = partial(Mlp, hidden=hidden, generator=source, activation=activation)
        self.first = nn.Parameter(torch.zeros(3 * latent_dims[0])) if bijector == "affine" else None
        self.conditionals, self.splines = nn.ModuleDict(), nn.ModuleDict()
        for number, width in enumerate(latent_dims):
            outputs = 3 * width if bijector == "affine" else 0
            outputs += 2 * width if prior == "conditional" else 0
            if number and outputs:
                self.conditionals[str(number)] = make([latent_dims[number - 1]], outputs=outputs)
            if bijector == "spline":
                context = [latent_dims[number - 1]] if number else []
                stays = (width + 1) // 2
                couplings = [make([n, *context], outputs=(width - n) * (3 * BINS - 1)) for n in (stays, width - stays)]
                self.splines[str(number)] = nn.ModuleList(couplings)
        self._make_decoders(make)

    def _make_decoders(self, make: Callable[..., Mlp]) -> None:
        """Make the residual data layers: one net on z_l, one on x_{l-1}, one on both; each kind's of all layers side by side."""
        own, previous, both = [], [], []
        sizes = self.partition.sizes
        self._outputs = [size * (1 if self.binary else 2) for size in sizes]
        for number, (width, outputs) in enumerate(zip(self.latent_dims, self._outputs, strict=True)):
            own.append(make([width], outputs=outputs))
            if number and self.data_coupling:
                previous.append(make([sizes[number - 1]], outputs=outputs))
                both.append(make([width, sizes[number - 1]], outputs=outputs))
        self.own = StackedMlp(own)
        self.previous, self.both = (StackedMlp(nets) if nets else None for nets in (previous, both))

    def conditional(self, layer: int, z_before: Tensor | None, like: Tensor) -> tuple[DiagonalGaussian, Bijector]:
        """See `Generator`."""
        width = self.latent_dims[layer]
        prior, parameters = standard_normal(width, like), self.first
        if str(layer) in self.conditionals:
            parameters = self.conditionals[str(layer)](z_before)
            if self.prior == "conditional":
                prior, parameters = split_gaussian(parameters[..., : 2 * width]), parameters[..., 2 * width :]
        if self.bijector == "affine":
            assert parameters is not None
            return prior, AffineRankOneBijector.of(parameters)
        if self.bijector == "spline":
            return prior, SplineCouplingBijector(list(self.splines[str(layer)].children()), width, z_before)
        return prior, IdentityBijector()

    def parameters_of_data(self, layer: int, z: Tensor, before: Tensor | None) -> Tensor:
        """gamma_l = gamma1_l(z_l) + delta_l(z_l, x_{l-1}): logits, or means and log sds [..., 2 D_l]."""
        found = self.own.alone(layer, z)
        if layer and self.both is not None and self.previous is not None:
            assert before is not None
            found = found + self.both.alone(layer - 1, z, before) + self.previous.alone(layer - 1, before)
        return found[..., : self._outputs[layer]]

    def _all_parameters_of_data(self, blocks: Sequence[Tensor], codes: Sequence[Tensor]) -> Tensor:
        """gamma of every layer [L, K, B, outputs], padded: no layer's data net waits for another's."""
        z = pad(codes)
        found: Tensor = self.own(z)
        if self.both is None or self.previous is None:
            return found
        before = pad(blocks[:-1])
        return torch.cat([found[:1], found[1:] + self.both(z[1:], before) + self.previous(before[:, None])])

    def log_likelihood(self, layer: int, block: Tensor, z: Tensor, before: Tensor | None) -> Tensor:
        """See `Generator`."""
        return self._log_density(block, self.parameters_of_data(layer, z, before))

    def total_log_likelihood(self, blocks: Sequence[Tensor], codes: Sequence[Tensor]) -> Tensor:
        """See `Generator`."""
        found = self._all_parameters_of_data(blocks, codes)
        if self.binary and len(set(self._outputs)) == 1:
            return self._log_density(torch.stack(list(blocks))[:, None], found).sum(0)
        cut = [found[layer, ..., :width] for layer, width in enumerate(self._outputs)]
        return torch.stack([self._log_density(block, part) for block, part in zip(blocks, cut, strict=True)]).sum(0)

    def _log_density(self, block: Tensor, parameters: Tensor) -> Tensor:
        if self.binary:
            return (block * parameters - softplus(parameters)).sum(-1)
        return split_gaussian(parameters).log_prob(block)

    def mean(self, layer: int, z: Tensor, before: Tensor | None) -> Tensor:
        """See `Generator`."""
        parameters = self.parameters_of_data(layer, z, before)
        return parameters.sigmoid() if self.binary else split_gaussian(parameters).mean

    def draw(self, layer: int, z: Tensor, before: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """See `Generator`."""
        parameters = self.parameters_of_data(layer, z, before)
        if self.binary:
            uniform = torch.rand(parameters.shape, generator=generator, device=z.device, dtype=z.dtype)
            return (uniform < parameters.sigmoid()).to(z.dtype)
        law = split_gaussian(parameters)
        return law.at(torch.randn(law.mean.shape, generator=generator, device=z.device, dtype=z.dtype))


def _choice(name: str, value: str, values: Sequence[str]) -> None:
    if value not in values:
        raise InputError(f"{name}: unknown {value!r}; choose one of {', '.join(values)}")
