"""Bijections from base latents eps to codes z, whose parameters a network of the previous code gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lightning_modules.errors import InputError

SMALLEST_SCALE = 1e-3
"""Added to softplus for d (ours): the paper's d >= 0 does not make the map invertible."""


class Bijector(Protocol):
    """A map eps [..., N] to z [..., N] with an inverse."""

    def forward(self, eps: Tensor) -> Tensor:
        """Map eps to z."""

    def inverse(self, z: Tensor) -> Tensor:
        """Map z to eps."""

    def log_abs_det(self, eps: Tensor | None = None) -> Tensor:
        """Log of the absolute determinant of the Jacobian at eps; where it does not depend on eps, that may be left out."""


class AffineRankOneBijector:
    """z = c + (diag(d) + u u') eps; inverse by Sherman and Morrison, log det = sum log d + log(1 + sum u^2 / d).

    Args:
        c: [..., N] shift.
        d: [..., N] diagonal, above 0.
        u: [..., N].

    Raises:
        InputError: an entry of d is not above 0.

    Source: paper, the bijective layer.
    """

    def __init__(self, c: Tensor, d: Tensor, u: Tensor) -> None:
        if not bool((d > 0).all()):
            raise InputError("d: an entry is 0 or below (or NaN); give a diagonal above 0, e.g. softplus(d) + 1e-3")
        self.c, self.d, self.u = c, d, u

    @classmethod
    def of(cls, parameters: Tensor) -> AffineRankOneBijector:
        """Make one of network outputs [..., 3 N], for which zeros give the identity but for 1e-3."""
        c, d, u = parameters.chunk(3, -1)
        made = cls.__new__(cls)  # softplus + 1e-3 is above 0 by itself: nothing to check at every step
        made.c, made.d, made.u = c, softplus(d + 0.5413) + SMALLEST_SCALE, u  # softplus(0.5413) = 1
        return made

    def forward(self, eps: Tensor) -> Tensor:
        """Map eps [..., N] to z [..., N]."""
        return self.c + self.d * eps + self.u * (self.u * eps).sum(-1, keepdim=True)

    def inverse(self, z: Tensor) -> Tensor:
        """Map z [..., N] to eps [..., N]."""
        scaled = (z - self.c) / self.d
        ratio = self.u / self.d
        share = (self.u * scaled).sum(-1, keepdim=True) / (1 + (self.u * ratio).sum(-1, keepdim=True))
        return scaled - ratio * share

    def log_abs_det(self, eps: Tensor | None = None) -> Tensor:
        """Log determinant [...]; the same for every eps."""
        return self.d.log().sum(-1) + (self.u.square() / self.d).sum(-1).log1p()


class IdentityBijector:
    """z = eps."""

    def forward(self, eps: Tensor) -> Tensor:
        """Return eps."""
        return eps

    def inverse(self, z: Tensor) -> Tensor:
        """Return z."""
        return z

    def log_abs_det(self, eps: Tensor | None = None) -> Tensor:
        """Return 0."""
        return torch.zeros(()) if eps is None else eps.new_zeros(eps.shape[:-1])


def import_zuko() -> Any:
    """Import the library that splines and masked autoregressive flows stand on.

    Raises:
        InputError: it is not installed.
    """
    try:
        import zuko
    except ModuleNotFoundError as error:
        raise InputError("flows stand on zuko, which is not installed: pip install 'shiftlab[flows]'") from error
    return zuko


BINS = 8
"""Of a spline."""

_BOUND = 5.0
"""Splines are the identity beyond +- this."""


class SplineCouplingBijector:
    """Two coupling layers of monotonic rational-quadratic splines, every other coordinate moved by the rest and the context.

    Args:
        nets: of each coupling, maps (what stays [..., n_a], context) to [..., n_b * (3 BINS - 1)].
        width: N, at least 2.
        context: what else the splines depend on, [..., C]; None: nothing.

    Source: Durkan et al., "Neural Spline Flows", arXiv 1906.04032; the paper's bijections in its flow experiment.
    """

    def __init__(self, nets: list[Callable[..., Tensor]], width: int, context: Tensor | None) -> None:
        zuko = import_zuko()
        mask = torch.arange(width) % 2 == 0
        self._parts = []
        for net, kept in zip(nets, (mask, ~mask), strict=True):

            def spline(stays: Tensor, net: Callable[..., Tensor] = net) -> Any:
                raw = net(stays) if context is None else net(stays, context)
                widths, heights, slopes = torch.split(
                    raw.reshape(*raw.shape[:-1], -1, 3 * BINS - 1), [BINS, BINS, BINS - 1], -1
                )
                inner = zuko.transforms.MonotonicRQSTransform(widths, heights, slopes, bound=_BOUND)
                return zuko.transforms.DependentTransform(inner, 1)

            self._parts.append(zuko.transforms.CouplingTransform(spline, kept))

    def forward(self, eps: Tensor) -> Tensor:
        """Map eps [..., N] to z [..., N]."""
        for part in self._parts:
            eps = part(eps)
        return eps

    def inverse(self, z: Tensor) -> Tensor:
        """Map z [..., N] to eps [..., N]."""
        for part in reversed(self._parts):
            z = part.inv(z)
        return z

    def log_abs_det(self, eps: Tensor | None = None) -> Tensor:
        """Log determinant [...] at eps.

        Raises:
            InputError: eps is missing.
        """
        if eps is None:
            raise InputError("eps: a spline's determinant depends on it; give eps")
        total = eps.new_zeros(eps.shape[:-1])
        for part in self._parts:
            eps, found = part.call_and_ladj(eps)
            total = total + found
        return total
