"""Mean and covariance of each domain, and the symmetric roots that whiten it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.errors import InputError

TEST_ADJUSTMENTS = ("mean_cov", "mean_sqrt", "mean_inv_sqrt")
"""How the training domains' covariances are averaged for a new domain of which nothing is known."""


class DomainStats:
    """Statistics of every domain in float64: counts, means, covariances (divided by n) and their eigendecompositions.

    The eigendecomposition of a domain is computed once, of the covariance as it is; shrinkage and roots only change
    eigenvalues. `with_shrinkage` shares that work, `update` drops it for the domains it touches.

    Args:
        shrinkage: rho in [0, 1]; Sigma_e becomes (1 - rho) Sigma_e + rho (tr Sigma_e / d) I. The paper regularises too,
            its value is unknown to us.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(100, 3))
        >>> stats = DomainStats.fit(x, np.arange(100) % 2)
        >>> stats.inv_sqrt.shape
        torch.Size([2, 3, 3])
    """

    def __init__(self, shrinkage: float = 0.0) -> None:
        self.shrinkage = check_shrinkage(shrinkage)
        self._count: dict[Any, int] = {}
        self._mean: dict[Any, Tensor] = {}
        self._scatter: dict[Any, Tensor] = {}  # sum of squared deviations, [d, d]
        self._eigen: dict[Any, tuple[Tensor, Tensor]] = {}
        self._pooled: dict[str, tuple[Tensor, Tensor]] = {}  # of the mean covariance; shared by all shrinkages

    @classmethod
    def fit(cls, x: Any, domain: Any, shrinkage: float = 0.0) -> DomainStats:
        """Compute the statistics of x [n, d] by domain [n] (integers or strings)."""
        return cls(shrinkage).update(x, domain)

    def update(self, x: Any, domain: Any) -> DomainStats:
        """Add a batch of examples, by Welford's method in the form of Chan et al. for batches; returns itself.

        Args:
            x: [n, d] features.
            domain: [n] the domain of each; new ones may appear.

        Raises:
            InputError: features that are not finite, or whose number differs from before.
        """
        x, domain = check_features(x), np.asarray(domain)
        if len(domain) != len(x):
            raise InputError(f"domain: {len(domain)} entries for {len(x)} rows of features; give one each")
        if self._mean and x.shape[1] != self.dimensions:
            raise InputError(f"x: {x.shape[1]} features, the batches before had {self.dimensions}; give the same")
        for name in np.unique(domain).tolist():
            rows = x[torch.from_numpy(domain == name)]
            mean = rows.mean(0)
            centred = rows - mean
            scatter, n = centred.T @ centred, len(rows)
            if name in self._count:
                before = self._count[name]
                gap = mean - self._mean[name]
                scatter += self._scatter[name] + torch.outer(gap, gap) * (before * n / (before + n))
                mean, n = self._mean[name] + gap * (n / (before + n)), before + n
            self._count[name], self._mean[name], self._scatter[name] = n, mean, scatter
            self._eigen.pop(name, None)
            self._pooled = {}
        return self

    @property
    def domains(self) -> list[Any]:
        """Names of the domains, sorted; the order of every [E, ...] array here."""
        return sorted(self._count)

    @property
    def dimensions(self) -> int:
        """Number of features d."""
        return len(next(iter(self._mean.values())))

    @property
    def count(self) -> Tensor:
        """Examples of each domain, [E]."""
        return torch.tensor([self._count[e] for e in self.domains])

    @property
    def mean(self) -> Tensor:
        """Means mu_e, [E, d]."""
        return torch.stack([self._mean[e] for e in self.domains])

    @property
    def covariance(self) -> Tensor:
        """Shrunk covariances Sigma_e, [E, d, d]."""
        return self.power(1.0)

    @property
    def inv_sqrt(self) -> Tensor:
        """Symmetric inverse roots Sigma_e^{-1/2}, [E, d, d].

        Raises:
            InputError: a covariance is singular, which names the domain.
        """
        return self.power(-0.5)

    @property
    def whitened_mean(self) -> Tensor:
        """m_e = Sigma_e^{-1/2} mu_e, [E, d]."""
        return torch.einsum("eij,ej->ei", self.inv_sqrt, self.mean)

    def with_shrinkage(self, shrinkage: float) -> DomainStats:
        """Return these statistics with another shrinkage; eigendecompositions are shared."""
        return self._view(self.domains, shrinkage)

    def select(self, domains: Iterable[Any]) -> DomainStats:
        """Return the statistics of some of the domains; eigendecompositions are shared."""
        chosen = list(domains)
        for name in chosen:
            if name not in self._count:
                raise InputError(f"domain: {name!r} has no statistics; there are {', '.join(map(str, self.domains))}")
        return self._view(chosen, self.shrinkage)

    def power(self, exponent: float) -> Tensor:
        """Compute the symmetric power Sigma_e^exponent of every domain, [E, d, d]."""
        return torch.stack([self._power(*self._decomposed(e), exponent, f"domain {e!r}") for e in self.domains])

    def average_adjustment(self, kind: str = "mean_cov") -> Tensor:
        """Whitening matrix for a domain of which nothing is known, [d, d].

        Args:
            kind: "mean_cov" (mean_e Sigma_e)^{-1/2}, the paper's as remembered; "mean_sqrt" (mean_e Sigma_e^{1/2})^{-1};
                "mean_inv_sqrt" mean_e Sigma_e^{-1/2}.
        """
        check_adjustment(kind)
        if kind == "mean_inv_sqrt":
            return self.inv_sqrt.mean(0)
        if kind == "mean_sqrt":
            inverse: Tensor = torch.linalg.inv(self.power(0.5).mean(0))
            return inverse
        # Shrinking and averaging commute, so the mean covariance too is decomposed once for all shrinkages.
        if "mean" not in self._pooled:
            self._pooled["mean"] = _eigh(torch.stack([self._scatter[e] / self._count[e] for e in self.domains]).mean(0))
        return self._power(*self._pooled["mean"], -0.5, "mean covariance")

    def _view(self, domains: list[Any], shrinkage: float) -> DomainStats:
        other = copy.copy(self)
        other.shrinkage = check_shrinkage(shrinkage)
        for name in domains:
            self._decomposed(name)
        other._count = {e: self._count[e] for e in domains}
        other._mean = {e: self._mean[e] for e in domains}
        other._scatter = {e: self._scatter[e] for e in domains}
        other._eigen = {e: self._eigen[e] for e in domains}
        if set(domains) != set(self._count):
            other._pooled = {}
        return other

    def _decomposed(self, name: Any) -> tuple[Tensor, Tensor]:
        if name not in self._eigen:
            self._eigen[name] = _eigh(self._scatter[name] / self._count[name])
        return self._eigen[name]

    def _power(self, values: Tensor, vectors: Tensor, exponent: float, what: str) -> Tensor:
        shrunk = (1 - self.shrinkage) * values + self.shrinkage * values.mean()
        if exponent < 0 and shrunk.min() <= len(values) * torch.finfo(shrunk.dtype).eps * shrunk.max():
            raise InputError(
                f"{what}: its covariance of {len(values)} features is singular; give shrinkage above "
                f"{self.shrinkage:g}, more examples, or drop constant features"
            )
        return (vectors * shrunk.pow(exponent)) @ vectors.T


def _eigh(covariance: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(covariance)
    return values.clamp_min(0), vectors


def check_shrinkage(shrinkage: float) -> float:
    """Return the shrinkage, or raise InputError if it is outside [0, 1]."""
    if not 0 <= shrinkage <= 1:
        raise InputError(f"shrinkage: {shrinkage} is not between 0 and 1; 0.1 is usual")
    return shrinkage


def check_adjustment(kind: str) -> str:
    """Return the name of a test adjustment, or raise InputError if there is none of that name."""
    if kind not in TEST_ADJUSTMENTS:
        raise InputError(f"test_adjustment: unknown {kind!r}; choose one of {', '.join(TEST_ADJUSTMENTS)}")
    return kind


def check_features(x: Any) -> Tensor:
    """Turn features [n, d] into a float64 tensor; raise InputError unless all are finite."""
    features = torch.as_tensor(x).detach().to("cpu", torch.float64)
    if features.ndim != 2 or 0 in features.shape:
        raise InputError(f"x: has shape {list(features.shape)}; give [n, d], neither of them 0")
    finite = features.isfinite().all(1)
    if not finite.all():
        raise InputError(
            f"x: {int((~finite).sum())} rows have NaN or infinite features, first row {int(finite.int().argmin())}; "
            "clean or drop them"
        )
    return features
