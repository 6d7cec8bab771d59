"""The inference half q(eps | x) = q(eps_1 | x) prod_l q(eps_l | z_{l-1}, x), as nets or as linear maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_modules.errors import InputError
from lightning_modules.generative.layers import LOG_SD_LIMIT, DiagonalGaussian, Mlp, StackedEncoder
from lightning_modules.generative.partition import BlockPartition

Family = Literal["self_reflective", "independent"]
Evidence = Literal["all", "from_previous", "without_previous", "previous_and_own", "block"]

FAMILIES: tuple[Family, ...] = ("self_reflective", "independent")
EVIDENCE: tuple[Evidence, ...] = ("all", "from_previous", "without_previous", "previous_and_own", "block")
"""What q(eps_l) sees of x: everything; x_{l-1}, ..., x_L, which is all that matters; x_l, ..., x_L; x_{l-1} and x_l; x_l."""


def evidence_masks(partition: BlockPartition, evidence: str) -> Tensor:
    """Masks [L, D] of what each layer's posterior sees of x.

    Raises:
        InputError: for an unknown evidence.
    """
    if evidence not in EVIDENCE:
        raise InputError(f"evidence: unknown {evidence!r}; choose one of {', '.join(EVIDENCE)}")
    masks = torch.zeros(len(partition), partition.dimension)
    for layer in range(len(partition)):
        first = layer - 1 if evidence in ("from_previous", "previous_and_own") else layer
        last = layer if evidence in ("previous_and_own", "block") else len(partition) - 1
        first, last = (0, len(partition) - 1) if evidence == "all" else (first, last)
        for number, part in enumerate(partition.slices()):
            if first <= number <= last:
                masks[layer, part] = 1
    return masks


class Posterior(nn.Module, ABC):
    """q(eps_l | z_{l-1}, x) of every layer.

    Args:
        family: "self_reflective", or "independent" for q(eps_l | x).

    Raises:
        InputError: for an unknown family.
    """

    def __init__(self, family: str) -> None:
        super().__init__()
        if family not in FAMILIES:
            raise InputError(f"posterior: unknown {family!r}; choose one of {', '.join(FAMILIES)}")
        self.family = family

    @abstractmethod
    def evidence(self, x: Tensor) -> Tensor:
        """What all layers read of x [B, D], as one tensor [L, B, H]."""

    @abstractmethod
    def conditional(self, layer: int, z_before: Tensor | None, evidence: Tensor) -> DiagonalGaussian:
        """q(eps_l | z_{l-1}, x) for codes [K, B, N_{l-1}] (None for the first layer) and the layer's evidence [B, H]."""


class NeuralPosterior(Posterior):
    """Nets in residual form: a first estimate from z_{l-1} alone, plus a correction from (z_{l-1}, h_l(x)).

    Means add, and log sds do (log sds: ours; the paper says standard deviations).

    Args:
        partition: of x.
        latent_dims: N_l.
        hidden: widths of the layers of the encoders h_l, and of the hidden layers of the first estimates.
        family: "self_reflective", or "independent" for q(eps_l | x), a correction from h_l alone.
        evidence: what h_l sees, see `EVIDENCE`.
        seed: of the first weights.
        activation: a name in `layers.ACTIVATIONS`.
        correction: widths of the hidden layers between (h_l, z_{l-1}) and the correction; none: a linear map of both.

    Raises:
        InputError: for an unknown choice.
    """

    def __init__(
        self,
        partition: BlockPartition,
        latent_dims: Sequence[int],
        hidden: Sequence[int] = (64, 64),
        family: str = "self_reflective",
        evidence: str = "all",
        seed: int = 0,
        activation: str = "silu",
        correction: Sequence[int] = (),
    ) -> None:
        super().__init__(family)
        source = torch.Generator().manual_seed(seed)
        self.encoder = StackedEncoder(evidence_masks(partition, evidence), hidden, source, activation)
        self.estimates, self.corrections = nn.ModuleDict(), nn.ModuleList()
        for layer, width in enumerate(latent_dims):
            before = [latent_dims[layer - 1]] if layer and family == "self_reflective" else []
            if before:
                self.estimates[str(layer)] = Mlp(before, hidden, 2 * width, source, activation)
            self.corrections.append(Mlp([hidden[-1], *before], correction, 2 * width, source, activation))

    def evidence(self, x: Tensor) -> Tensor:
        """Encode x [B, D] to [L, B, H], all layers in one product."""
        found: Tensor = self.encoder(x)
        return found

    def conditional(self, layer: int, z_before: Tensor | None, evidence: Tensor) -> DiagonalGaussian:
        """See `Posterior`."""
        if str(layer) in self.estimates:
            found = self.corrections[layer](evidence, z_before) + self.estimates[str(layer)](z_before)
        else:
            found = self.corrections[layer](evidence)
        mean, log_sd = found.chunk(2, -1)
        return DiagonalGaussian(mean, log_sd.clamp(-LOG_SD_LIMIT, LOG_SD_LIMIT))


class LinearPosterior(Posterior):
    """Means linear in (z_{l-1}, x) and constant standard deviations; starts at N(0, I).

    Args:
        partition: of x.
        latent_dims: N_l.
        family: "self_reflective", or "independent" for means linear in x alone.
        evidence: what of x counts, see `EVIDENCE`.
    """

    def __init__(
        self,
        partition: BlockPartition,
        latent_dims: Sequence[int],
        family: str = "self_reflective",
        evidence: str = "all",
    ) -> None:
        super().__init__(family)
        self.masks: Tensor
        self.register_buffer("masks", evidence_masks(partition, evidence))
        before = [0, *latent_dims[:-1]] if family == "self_reflective" else [0] * len(latent_dims)
        pairs = list(zip(latent_dims, before, strict=True))
        self.on_z = nn.ParameterList([torch.zeros(n, m) for n, m in pairs])
        self.on_x = nn.ParameterList([torch.zeros(n, partition.dimension) for n in latent_dims])
        self.shifts = nn.ParameterList([torch.zeros(n) for n in latent_dims])
        self.log_sds = nn.ParameterList([torch.zeros(n) for n in latent_dims])

    def evidence(self, x: Tensor) -> Tensor:
        """Mask x [B, D] to [L, B, D]."""
        return x * self.masks[:, None].to(x.dtype)

    def conditional(self, layer: int, z_before: Tensor | None, evidence: Tensor) -> DiagonalGaussian:
        """See `Posterior`."""
        mean = evidence @ self.on_x[layer].mT + self.shifts[layer]
        if z_before is not None and self.on_z[layer].numel():
            mean = mean + z_before @ self.on_z[layer].mT
        return DiagonalGaussian(mean, self.log_sds[layer].clamp(-LOG_SD_LIMIT, LOG_SD_LIMIT))
