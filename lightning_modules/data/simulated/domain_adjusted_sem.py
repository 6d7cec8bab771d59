"""The domain model behind domain-adjusted regression: a latent signal, shifted and stretched anew in every domain."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lightning_modules.data.environments import Dataset, Environment
from lightning_modules.errors import InputError

LABEL_NOISE = 0.5
"""Standard deviation of what is added to beta* . eps_0 before the label is taken."""


@dataclass(frozen=True)
class DomainModel:
    """x = Sigma_e^{1/2} (eps_0 + b_e), eps_0 ~ N(0, I), y depends on beta* . eps_0 + noise in every domain e alike.

    Source: arXiv 2202.06856, the domain model; roots are symmetric, so Sigma_e^{-1/2} mu_e = b_e.

    Args:
        beta: beta*, [d], of length 1.
        shifts: b_e of the training domains, then of the test domains, [E + T, d].
        roots: Sigma_e^{1/2}, [E + T, d, d].
        train: E.
    """

    beta: np.ndarray
    shifts: np.ndarray
    roots: np.ndarray
    train: int

    @property
    def projected_beta(self) -> np.ndarray:
        """Pi beta* [d]: the part of beta* orthogonal to the training domains' shifts, which DARE should find."""
        _, values, vectors = np.linalg.svd(self.shifts[: self.train], full_matrices=False)
        span = vectors[values > 1e-9]
        projected: np.ndarray = self.beta - span.T @ (span @ self.beta)
        return projected

    def sample(self, domain: int, n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw n examples of a domain.

        Returns:
            x [n, d]; the response beta* . eps_0 + noise [n], whose sign is the binary label; eps_0 [n, d].
        """
        signal = generator.standard_normal((n, len(self.beta)))
        response = signal @ self.beta + LABEL_NOISE * generator.standard_normal(n)
        return (signal + self.shifts[domain]) @ self.roots[domain], response, signal


def domain_model(
    environments: int = 5, dimensions: int = 20, spread: float = 1.0, shift: float = 3.0, test: int = 1, seed: int = 0
) -> DomainModel:
    """Draw a model; what does not depend on a parameter (beta*, directions) is the same for all its values.

    Args:
        environments: training domains E, at least 2 and fewer than `dimensions`.
        dimensions: d.
        spread: log-eigenvalues of Sigma_e are uniform in +-spread, its eigenvectors uniform.
        shift: typical length of b_e (its entries are normal with standard deviation shift / sqrt(d)); a test
            domain's b is a combination of the training domains' with standard normal weights, so about sqrt(E) longer.
        test: test domains.
        seed: of everything.

    Raises:
        InputError: for a parameter out of range.
    """
    if environments < 2:
        raise InputError(f"environments: {environments}; give at least 2 to train on")
    if dimensions <= environments:
        raise InputError(f"dimensions: {dimensions}; give more than the {environments} training environments")
    if spread < 0 or shift < 0 or test < 0 or seed < 0:
        raise InputError("spread, shift, test and seed: give 0 or more")
    generator = np.random.default_rng(np.random.SeedSequence([seed, environments, dimensions]))
    beta = generator.standard_normal(dimensions)
    beta /= np.linalg.norm(beta)
    directions = generator.standard_normal((environments, dimensions)) / math.sqrt(dimensions)
    mixed = generator.standard_normal((test, environments)) @ directions
    total = environments + test
    bases, triangle = np.linalg.qr(generator.standard_normal((total, dimensions, dimensions)))
    bases = bases * np.sign(np.diagonal(triangle, axis1=1, axis2=2))[:, None, :]
    log_values = generator.uniform(-1, 1, (total, dimensions))
    roots = np.einsum("eij,ej,ekj->eik", bases, np.exp(spread * log_values / 2), bases)
    return DomainModel(beta, shift * np.concatenate([directions, mixed]), roots, environments)


def domain_adjusted_sem(
    environments: int = 5,
    n: int = 2000,
    dimensions: int = 20,
    spread: float = 1.0,
    shift: float = 3.0,
    test: int = 1,
    seed: int = 0,
) -> Dataset:
    """Build the binary simulation: y = 1 where beta* . eps_0 + noise is positive, x shifted and stretched by domain.

    Args:
        environments: training environments "train0", "train1", ...
        n: examples of each environment.
        dimensions: features.
        spread: log-eigenvalues of each covariance are uniform in +-spread.
        shift: typical length of a domain's whitened mean.
        test: test environments "test0", ..., whose whitened means lie in the span of the training environments'.
        seed: of everything.

    Returns:
        Inputs [n, dimensions] float32, labels 0 and 1.

    Raises:
        InputError: for a parameter out of range.
    """
    if n < 2:
        raise InputError(f"n: {n} examples; give at least 2")
    model = domain_model(environments, dimensions, spread, shift, test, seed)
    names = [f"train{e}" for e in range(environments)] + [f"test{e}" for e in range(test)]
    parts = []
    for number, name in enumerate(names):
        generator = np.random.default_rng(np.random.SeedSequence([seed, environments, dimensions, number]))
        x, response, _ = model.sample(number, n, generator)
        parts.append(Environment(name, x.astype(np.float32), (response > 0).astype(np.int64)))
    identity = (
        f"DomainAdjustedSEM(environments={environments},n={n},dimensions={dimensions},spread={spread:g},"
        f"shift={shift:g},test={test},seed={seed})"
    )
    return Dataset(identity, tuple(parts), ("0", "1"), "linear")
