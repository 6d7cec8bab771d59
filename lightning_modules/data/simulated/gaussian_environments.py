"""Gaussian environments with known moments: invariant features, and spurious ones whose law changes each time.

Source: Chen, Rosenfeld, Sellke, Ma & Risteski, "Iterative Feature Matching", arXiv 2106.09913, section on Gaussian data;
scales as in the authors' published code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from lightning_modules.data.digits import load_digits
from lightning_modules.data.environments import Dataset, Environment
from lightning_modules.errors import InputError

_LAW, _SAMPLE = 0, 1  # streams of a seed: what the environments are, and what is drawn from them


@dataclass(frozen=True)
class GaussianEnvironments:
    """x = S [z1; z2] with z1 | y ~ N(y mu_1, I), the same everywhere, and z2 | y ~ N(y mu_e, A_e A_e') of each environment.

    y is uniform in {-1, +1}, S orthogonal, mu_e ~ N(0, mu_scale^2 I), A_e standard normal. An environment depends on
    the sizes, the seed and its position alone: with more environments the first ones stay what they were.

    Args:
        d_inv: number of invariant dimensions, d_1 >= 1.
        d_spu: number of spurious dimensions, d_s >= 1.
        n_envs: number of environments, E.
        mu_inv: every entry of mu_1.
        mu_scale: standard deviation of the entries of mu_e.
        rotate: whether S is a random rotation; else the identity.
        shared_covariance: whether all environments have the first one's spurious covariance (only means differ).
        seed: of everything random, 0 or more.

    Raises:
        InputError: for a size below 1 or a negative seed.
    """

    d_inv: int = 5
    d_spu: int = 32
    n_envs: int = 9
    mu_inv: float = 1.0
    mu_scale: float = 10.0
    rotate: bool = True
    shared_covariance: bool = False
    seed: int = 0
    spurious_sign: int = field(default=1, kw_only=True)

    means: np.ndarray = field(init=False, repr=False, compare=False)
    """[E, d] mean of class +1; class -1 has its negative."""
    covariances: np.ndarray = field(init=False, repr=False, compare=False)
    """[E, d, d] covariance of either class."""
    rotation: np.ndarray = field(init=False, repr=False, compare=False)
    """S [d, d]: the first d_inv columns span the invariant features."""

    def __post_init__(self) -> None:
        for name in ("d_inv", "d_spu", "n_envs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is below 1; give at least 1")
        if self.seed < 0:
            raise InputError(f"seed: {self.seed} is negative; give 0 or more")
        d, k, envs = self.d_inv + self.d_spu, self.d_spu, self.n_envs
        # One block [k, 1 + k] of draws an environment, in order: a longer list of environments begins with the shorter.
        law = np.random.default_rng([self.seed, _LAW, 0]).standard_normal((envs, k, 1 + k))
        factors = np.broadcast_to(law[:1, :, 1:], (envs, k, k)) if self.shared_covariance else law[:, :, 1:]
        means = np.full((envs, d), float(self.mu_inv))
        means[:, self.d_inv :] = self.spurious_sign * self.mu_scale * law[:, :, 0]
        covariances = np.zeros((envs, d, d))
        covariances[:, : self.d_inv, : self.d_inv] = np.eye(self.d_inv)
        covariances[:, self.d_inv :, self.d_inv :] = factors @ factors.transpose(0, 2, 1)
        rotation = np.eye(d)
        if self.rotate:
            q, r = np.linalg.qr(np.random.default_rng([self.seed, _LAW, 1]).standard_normal((d, d)))
            rotation = q * np.sign(np.diag(r))  # makes the rotation uniform
        object.__setattr__(self, "means", means @ rotation.T)
        object.__setattr__(self, "covariances", rotation @ covariances @ rotation.T)
        object.__setattr__(self, "rotation", rotation)

    @property
    def invariant_basis(self) -> np.ndarray:
        """[d, d_inv] orthonormal columns that span the invariant directions."""
        return self.rotation[:, : self.d_inv]

    @property
    def spurious_basis(self) -> np.ndarray:
        """[d, d_spu] orthonormal columns that span the spurious directions."""
        return self.rotation[:, self.d_inv :]

    @property
    def bayes_accuracy(self) -> float:
        """Best accuracy of a rule that uses the invariant directions alone: NormalCDF(|mu_1|)."""
        return float(_normal_cdf(np.array(abs(self.mu_inv) * math.sqrt(self.d_inv))))

    def flipped(self) -> GaussianEnvironments:
        """Return the same environments with mu_e negated: what correlated with a class now correlates with the other."""
        return replace(self, spurious_sign=-self.spurious_sign)

    def sample(self, n: int, stream: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Draw n examples from each environment.

        Args:
            n: examples an environment.
            stream: another number, another draw.

        Returns:
            x [E, n, d] float64 and y [E, n] in {-1, +1}; the first environments' draws do not depend on how many follow.
        """
        d = self.d_inv + self.d_spu
        draws = np.random.default_rng([self.seed, _SAMPLE, stream]).standard_normal((self.n_envs, n, d + 1))
        y = np.where(draws[..., 0] < 0, -1, 1)
        eigenvalues, vectors = np.linalg.eigh(self.covariances)
        roots = vectors * np.sqrt(np.clip(eigenvalues, 0, None))[:, None, :]
        return y[..., None] * self.means[:, None, :] + draws[..., 1:] @ roots.transpose(0, 2, 1), y

    def accuracy(self, weights: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
        """Compute the exact accuracy of sign(weights . x + bias), averaged over environments.

        Args:
            weights: [..., d], not zero.
            bias: [...].

        Returns:
            [...] accuracies.
        """
        bias = np.asarray(bias)[..., None]
        signal = weights @ self.means.T
        noise = np.sqrt(np.einsum("...i,eij,...j->...e", weights, self.covariances, weights))
        right = (_normal_cdf((signal + bias) / noise) + _normal_cdf((signal - bias) / noise)) / 2
        return np.asarray(right.mean(-1))


def gaussian_environments(
    environments: int = 9, n: int = 1000, invariant: int = 5, spurious: int = 32, flipped: bool = True, seed: int = 0
) -> Dataset:
    """Build the Gaussian task as a dataset for sweeps: train environments, and one where the spurious means are negated.

    Args:
        environments: number of training environments, "train0" and so on.
        n: examples of each environment, 2 or more.
        invariant: number of invariant dimensions.
        spurious: number of spurious dimensions.
        flipped: whether there is an environment "flipped": n examples shared out evenly over the training laws with
            mu_e negated. Hold it out to see which features a method relies on.
        seed: of the laws and of the draws; another seed is another dataset.

    Returns:
        Inputs [n, invariant + spurious] float32; class 1 is y = +1.

    Raises:
        InputError: for a size below 1, fewer than two environments in all, or n below 2.
    """
    if environments + flipped < 2:
        raise InputError(f"environments: {environments} is below 2; give at least 2, or 1 and flipped=True")
    if n < 2:
        raise InputError(f"n: {n} examples an environment cannot be split; give at least 2")
    law = GaussianEnvironments(invariant, spurious, environments, seed=seed)
    x, y = law.sample(n)
    rooms = [
        Environment(f"train{e}", x[e].astype(np.float32), (y[e] > 0).astype(np.int64)) for e in range(environments)
    ]
    if flipped:
        drawn = law.flipped().sample(math.ceil(n / environments), stream=1)
        x, y = (np.swapaxes(part, 0, 1).reshape(-1, *part.shape[2:])[:n] for part in drawn)
        rooms.append(Environment("flipped", x.astype(np.float32), (y > 0).astype(np.int64)))
    identity = (
        f"GaussianEnvironments(environments={environments},n={n},invariant={invariant},spurious={spurious},"
        f"flipped={flipped},seed={seed})"
    )
    return Dataset(identity, tuple(rooms), ("y = -1", "y = +1"), "linear")


def noised_mnist(environments: int = 12, extra: int = 28, seed: int = 0) -> Dataset:
    """Append Gaussian inputs to real digits: in training they tell the label, in the test they tell a random one.

    The extra inputs are N(mu_label, A_e A_e') with class means mu ~ N(0, 2.5^2 I) shared by all environments and A_e
    standard normal, fresh in each. The environments "train0" and so on hold 9 tenths of the 5,000 digits (of these one
    ninth is marked "out"); "test" holds one tenth, with fresh covariances and the extra inputs of a random label.

    Args:
        environments: number of training environments, 1 or more; the test digits are shared out over as many laws.
        extra: number of extra inputs.
        seed: of the deal of the digits, the laws and the draws; another seed is another dataset.

    Returns:
        Inputs [n, 784 + extra] float32: pixels in [0, 1], then the extra ones.

    Raises:
        InputError: for sizes out of range, or where the package with the digits is missing.

    Source: arXiv 2106.09913, noised MNIST, as in the published code; there with 70,000 digits.
    """
    if not 1 <= environments <= 100:
        raise InputError(f"environments: {environments} is not in 1..100; 12 is usual")
    if extra < 1:
        raise InputError(f"extra: {extra} is below 1; give at least 1")
    generator = np.random.default_rng(seed)
    images, digits = load_digits()
    size = len(digits) // environments
    order = generator.permutation(len(digits))[: size * environments].reshape(environments, size)
    x, y = images[order].reshape(environments, size, -1).astype(np.float32) / 255, digits[order]
    train, validation = int(0.8 * size), int(0.1 * size)
    seen = train + validation
    means = 2.5 * generator.standard_normal((10, extra))
    told = y.copy()
    told[:, seen:] = generator.integers(0, 10, (environments, size - seen))
    factors = generator.standard_normal((2, environments, extra, extra))
    draws = generator.standard_normal((environments, size, extra))
    noise = np.concatenate([draws[:, :seen] @ factors[0].mT, draws[:, seen:] @ factors[1].mT], axis=1)
    x = np.concatenate([x, (means[told] + noise).astype(np.float32)], axis=2)
    out = np.arange(seen) >= train
    rooms = [Environment(f"train{e}", x[e, :seen], y[e, :seen], out) for e in range(environments)]
    rooms.append(Environment("test", x[:, seen:].reshape(-1, x.shape[2]), y[:, seen:].reshape(-1)))
    identity = f"NoisedMNIST(environments={environments},extra={extra},seed={seed})"
    return Dataset(identity, tuple(rooms), tuple(map(str, range(10))), "mlp")


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    import torch  # imported here because the data alone do not need it

    return np.asarray(torch.special.ndtr(torch.from_numpy(x)))
