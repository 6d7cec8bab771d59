"""Linear-Gaussian hierarchies, whose likelihood, posterior and best bound of each family of posteriors are known exactly."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_modules.errors import InputError
from lightning_modules.generative.hierarchy import SelfReflectiveHierarchy
from lightning_modules.generative.linear_generator import LinearGaussianGenerator
from lightning_modules.generative.partition import BlockPartition, check_data
from lightning_modules.generative.posterior import LinearPosterior

Matrix = float | list[list[float]] | Tensor

_LOG_2PI = math.log(2 * math.pi)


class LinearGaussianHierarchy:
    """eps_1 ~ N(0, I); eps_l ~ N(P z_{l-1}, diag(s)^2); z_1 = M eps_1; z_l = S z_{l-1} + M eps_l; x_l ~ N(W z_l + V x_{l-1}, r I).

    The defaults are a scalar chain of four layers. Everything is float64. Numbers stand for multiples of the identity.

    Args:
        L: number of layers.
        prior: P [N, N].
        s: standard deviations, a number or N of them.
        shift: S [N, N]. The same p(x, z) has P and S in other proportions: only S + M P counts.
        M: [N, N], invertible.
        W: [D_l, N].
        V: [D_l, D_l].
        r: variance of the data given the codes.

    Raises:
        InputError: shapes do not fit, M is not invertible, or s or r is not above 0.

    Source: derived.
    """

    def __init__(
        self,
        L: int = 4,
        prior: Matrix = -0.5,
        s: float | list[float] = 1.0,
        shift: Matrix = 1.5,
        M: Matrix = 1.0,
        W: Matrix = 1.0,
        V: Matrix = -0.5,
        r: float = 0.25,
    ) -> None:
        sizes = [len(value) for value in (prior, shift, M) if not isinstance(value, float | int)]
        n = sizes[0] if sizes else (len(s) if isinstance(s, list) else 1)
        self.W = torch.eye(n, dtype=torch.double) * W if isinstance(W, float | int) else _double(W)
        d = len(self.W)
        self.L, self.latents, self.block, self.r = L, n, d, float(r)
        self.prior, self.shift, self.M = (_square(name, v, n) for name, v in zip("PSM", (prior, shift, M), strict=True))
        self.V = _square("V", V, d)
        self.s = torch.as_tensor(s, dtype=torch.double).expand(n).clone()
        if L < 1 or not r > 0 or not bool((self.s > 0).all()):
            raise InputError(f"L, r, s: {L}, {r}, {self.s.tolist()}; give L of at least 1, and r and s above 0")
        if self.W.shape != (d, n) or not bool(torch.linalg.det(self.M).abs() > 0):
            raise InputError(
                f"W, M: shapes {list(self.W.shape)}, {list(self.M.shape)}; give [D_l, N] and an invertible M"
            )
        self._maps()

    def _maps(self) -> None:
        """Stack (eps, x) as linear maps of the independent noises (e_1, ..., e_L, n_1, ..., n_L)."""
        n, d, count = self.latents, self.block, self.L
        total = count * (n + d)
        latents: list[Tensor] = []
        codes: list[Tensor] = []
        data: list[Tensor] = []
        for layer in range(count):
            e, noise = torch.zeros(n, total, dtype=torch.double), torch.zeros(d, total, dtype=torch.double)
            e[:, layer * n : (layer + 1) * n] = torch.diag(self.s) if layer else torch.eye(n, dtype=torch.double)
            start = count * n + layer * d
            noise[:, start : start + d] = math.sqrt(self.r) * torch.eye(d, dtype=torch.double)
            eps = e + self.prior @ codes[-1] if layer else e
            z = self.M @ eps + (self.shift @ codes[-1] if layer else 0)
            x = self.W @ z + noise + (self.V @ data[-1] if layer else 0)
            latents.append(eps)
            codes.append(z)
            data.append(x)
        self._eps, self._z, self._x = torch.cat(latents), torch.cat(codes), torch.cat(data)

    @property
    def partition(self) -> BlockPartition:
        """Of x."""
        return BlockPartition([self.block] * self.L)

    @property
    def covariance(self) -> Tensor:
        """[D, D] of x."""
        return self._x @ self._x.mT

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw x [n, D]."""
        return torch.randn(n, self._x.shape[1], generator=generator, dtype=torch.double) @ self._x.mT

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log p(x) [B] of x [B, D].

        Raises:
            InputError: x has another width, or holds NaN.
        """
        check_data(x, self.partition, binary=False)
        law = torch.distributions.MultivariateNormal(x.new_zeros(x.shape[-1]).double(), self.covariance)
        found: Tensor = law.log_prob(x.double())  # type: ignore[no-untyped-call]
        return found

    def entropy(self) -> float:
        """Entropy of p(x) in nats; -E log p(x)."""
        return float(0.5 * (torch.logdet(self.covariance) + len(self._x) * (1 + _LOG_2PI)))

    def exact_conditional(self, layer: int) -> tuple[Tensor, Tensor]:
        """p(eps_l | z_{l-1}, x) = N(coefficients (z_{l-1}, x), covariance).

        Args:
            layer: l, from 1 to L.

        Returns:
            Coefficients [N, N + D] (the first layer: [N, D]) and covariance [N, N].

        Raises:
            InputError: there is no such layer.
        """
        if not 1 <= layer <= self.L:
            raise InputError(f"layer: {layer}; give 1 to {self.L}")
        n = self.latents
        eps = self._eps[(layer - 1) * n : layer * n]
        known = self._x if layer == 1 else torch.cat([self._z[(layer - 2) * n : (layer - 1) * n], self._x])
        coefficients = torch.linalg.solve(known @ known.mT, known @ eps.mT).mT
        rest = eps - coefficients @ known
        return coefficients, rest @ rest.mT

    def gap(self, family: Literal["mean_field", "self_reflective"]) -> float:
        """How far the best ELBO of a family of diagonal Gaussians stays below log p(x), in nats; the same for every x.

        The best diagonal Gaussian for a precision Lam has variances 1 / Lam_ii, and is (sum log Lam_ii - log det Lam) / 2 away.

        Args:
            family: "mean_field" for q(eps | x) with independent entries, "self_reflective" for independent entries of eps_l
                given z_{l-1} and x.

        Raises:
            InputError: for another family.
        """
        if family == "mean_field":
            known = self._x
            rest = self._eps - torch.linalg.solve(known @ known.mT, known @ self._eps.mT).mT @ known
            return _diagonal_gap(rest @ rest.mT)
        if family != "self_reflective":
            raise InputError(f"family: unknown {family!r}; choose mean_field or self_reflective")
        return math.fsum(_diagonal_gap(self.exact_conditional(layer)[1]) for layer in range(1, self.L + 1))

    def as_generator(self) -> LinearGaussianGenerator:
        """Make the same model as a frozen generator of a `SelfReflectiveHierarchy`, float64."""
        return LinearGaussianGenerator(self.partition, self.prior, self.s, self.shift, self.M, self.W, self.V, self.r)

    def exact_posterior(self) -> LinearPosterior:
        """Make the best self-reflective diagonal posterior: for N = 1 it is p(eps | x) itself. Float64."""
        posterior = LinearPosterior(self.partition, [self.latents] * self.L).double()
        with torch.no_grad():
            for number in range(self.L):
                coefficients, covariance = self.exact_conditional(number + 1)
                border = self.latents if number else 0
                posterior.on_z[number].copy_(coefficients[:, :border])
                posterior.on_x[number].copy_(coefficients[:, border:])
                posterior.log_sds[number].copy_(-0.5 * torch.linalg.inv(covariance).diagonal().log())
        return posterior

    def expected_elbo(self, posterior: LinearPosterior) -> Tensor:
        """E_p(x)[ELBO] of a linear posterior without shifts, exactly; differentiable.

        (eps, x) under q(eps | x) p(x) is Gaussian with a covariance C, and the ELBO is -(tr(P C) + log det(2 pi C_p)) / 2 plus
        the entropy of q, P and C_p precision and covariance of (eps, x) under the model.
        """
        n, d = self.latents, self.block * self.L
        joint = torch.cat([self._eps, self._x])
        covariance = joint @ joint.mT
        width = d + n * self.L  # of the noises of x and of the posterior
        root = torch.linalg.cholesky(self.covariance)
        data = torch.cat([root, root.new_zeros(d, n * self.L)], 1)
        latents: list[Tensor] = []
        z: Tensor | None = None
        entropy = data.new_zeros(())
        for layer in range(self.L):
            own = torch.zeros(n, width, dtype=torch.double)
            own[:, d + layer * n : d + (layer + 1) * n] = torch.eye(n, dtype=torch.double)
            log_sd = posterior.log_sds[layer]
            eps = (posterior.on_x[layer] * posterior.masks[layer]) @ data + log_sd.exp()[:, None] * own
            if z is not None and posterior.on_z[layer].numel():
                eps = eps + posterior.on_z[layer] @ z
            entropy = entropy + (log_sd + 0.5 * (1 + _LOG_2PI)).sum()
            latents.append(eps)
            z = self.M @ eps + (self.shift @ z if z is not None else 0)
        stacked = torch.cat([*latents, data])
        energy = torch.trace(torch.linalg.solve(covariance, stacked @ stacked.mT))
        return entropy - 0.5 * (energy + torch.logdet(covariance) + len(joint) * _LOG_2PI)

    def restricted_gap(self, family: str = "self_reflective", evidence: str = "all", steps: int = 200) -> float:
        """Smallest gap of linear posteriors that see a part of x only, by L-BFGS on the exact expected ELBO.

        Args:
            family: "self_reflective" or "independent" (of z_{l-1}).
            evidence: see `posterior.EVIDENCE`.
            steps: iterations at most.
        """
        posterior = LinearPosterior(self.partition, [self.latents] * self.L, family, evidence).double()
        used = [*posterior.on_z, *posterior.on_x, *posterior.log_sds]
        optimizer = torch.optim.LBFGS(
            used, max_iter=steps, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = -self.expected_elbo(posterior)
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        return -self.entropy() - float(self.expected_elbo(posterior).detach())

    def with_posterior(self, posterior: Any) -> SelfReflectiveHierarchy:
        """Put a posterior beside the frozen generator: what a tightness study trains."""
        return SelfReflectiveHierarchy(self.as_generator(), posterior)


def vector_chain() -> LinearGaussianHierarchy:
    """Make a chain of three layers of two latents and three entries each, whose diagonal posterior is not exact."""
    u = torch.tensor([0.6, 0.5], dtype=torch.double)
    M = torch.diag(torch.tensor([1.0, 0.8], dtype=torch.double)) + torch.outer(u, u)
    W = [[1.0, 0.4], [0.3, 1.0], [0.5, -0.5]]
    return LinearGaussianHierarchy(3, 0.5, [0.7, 0.9], -0.5, M, W, 0.3, 0.25)


def _double(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.double)


def _square(name: str, value: Matrix, size: int) -> Tensor:
    found = torch.eye(size, dtype=torch.double) * value if isinstance(value, float | int) else _double(value)
    if found.shape != (size, size):
        raise InputError(f"{name}: shape {list(found.shape)}; give [{size}, {size}], or a number")
    return found


def _diagonal_gap(covariance: Tensor) -> float:
    precision = torch.linalg.inv(covariance)
    return float(0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)))
