"""Invariant and environmental Gaussian features of a binary label: the latent model of "The Risks of IRM"."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from lightning_modules.data.environments import Dataset, Environment
from lightning_modules.errors import InputError


@dataclass(frozen=True, eq=False)
class GaussianSEM:
    """y in {-1, +1}, P(y=+1) = eta; z_c | y ~ N(y mu_c, s_c^2 I); z_e | y ~ N(y mu_e, s_e^2 I); x = S [z_c; z_e].

    Only mu_e and s_e^2 depend on the environment. Source: Rosenfeld, Ravikumar & Risteski, "The Risks of Invariant
    Risk Minimization", arXiv 2010.05761, section 3.

    Args:
        mu_c: mean of the invariant features given y=+1, [d_c].
        sigma_c2: their variance.
        env_means: mean of the environmental features given y=+1 in each environment, [E, d_e].
        env_vars: their variance in each environment, [E].
        eta: P(y=+1).
        mixing: S of full column rank, [d, d_c + d_e]; None for the identity.

    Raises:
        InputError: for a shape that does not fit, a variance that is not positive, eta outside (0, 1), numbers that are
            not finite, or a mixing matrix that loses a feature.
    """

    mu_c: np.ndarray
    sigma_c2: float
    env_means: np.ndarray
    env_vars: np.ndarray
    eta: float = 0.5
    mixing: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("mu_c", "env_means", "env_vars", *(() if self.mixing is None else ("mixing",))):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
            if not np.isfinite(getattr(self, name)).all():
                raise InputError(f"{name}: has NaN or infinite numbers; give finite ones")
        if self.mu_c.ndim != 1 or not len(self.mu_c):
            raise InputError(f"mu_c: has shape {list(self.mu_c.shape)}; give a vector [d_c]")
        if self.env_means.ndim != 2 or 0 in self.env_means.shape:
            raise InputError(f"env_means: has shape {list(self.env_means.shape)}; give a matrix [E, d_e]")
        if self.env_vars.shape != (len(self.env_means),):
            raise InputError(
                f"env_vars: has shape {list(self.env_vars.shape)}, env_means has {len(self.env_means)} environments; "
                "give one variance an environment"
            )
        if not self.sigma_c2 > 0 or not math.isfinite(self.sigma_c2):
            raise InputError(f"sigma_c2: {self.sigma_c2} is not a variance; give a finite number above 0")
        if not (self.env_vars > 0).all():
            raise InputError(f"env_vars: {self.env_vars.min()} is not a variance; give numbers above 0")
        if not 0 < self.eta < 1:
            raise InputError(f"eta: {self.eta} is not between 0 and 1, both excluded; 0.5 makes classes equal")
        if self.mixing is not None:
            if self.mixing.ndim != 2 or self.mixing.shape[1] != self.latents:
                raise InputError(
                    f"mixing: has shape {list(self.mixing.shape)}; give [d, {self.latents}] for {len(self.mu_c)} "
                    f"invariant and {self.env_means.shape[1]} environmental features"
                )
            if np.linalg.matrix_rank(self.mixing) < self.latents:
                raise InputError(
                    f"mixing: its rank is below {self.latents}, so features are lost; give full column rank"
                )

    @property
    def environments(self) -> int:
        """Number of environments, E."""
        return len(self.env_means)

    @property
    def latents(self) -> int:
        """Number of latent features, d_c + d_e."""
        return len(self.mu_c) + int(self.env_means.shape[1])

    @property
    def log_odds(self) -> float:
        """Intercept of every optimal predictor: log(eta / (1 - eta))."""
        return math.log(self.eta / (1 - self.eta))

    def latent_moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and the variances of y z in each environment, [E, d_c + d_e] each."""
        count, d_e = self.env_means.shape
        means = np.concatenate([np.broadcast_to(self.mu_c, (count, len(self.mu_c))), self.env_means], axis=1)
        variances = np.repeat([[self.sigma_c2, 0.0]], count, axis=0)
        variances[:, 1] = self.env_vars
        return means, np.repeat(variances, [len(self.mu_c), d_e], axis=1)

    def sample(
        self, env: int | np.ndarray, n: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw examples of one environment, or of many at once.

        Args:
            env: an environment, or an array [...] of them.
            n: examples of each.
            generator: source of the draws.

        Returns:
            x [..., n, d], y [..., n] in {-1, +1} and z [..., n, d_c + d_e], all float64.

        Raises:
            InputError: n is below 1 or there is no such environment.
        """
        env = np.asarray(env)
        if n < 1:
            raise InputError(f"n: {n} examples cannot be drawn; give 1 or more")
        if env.dtype.kind not in "iu" or (env < 0).any() or (env >= self.environments).any():
            raise InputError(f"env: {env.tolist()} is not an environment; give 0..{self.environments - 1}")
        means, variances = self.latent_moments()
        y = np.where(generator.random((*env.shape, n)) < self.eta, 1.0, -1.0)
        noise = generator.standard_normal((*env.shape, n, self.latents))
        z = y[..., None] * means[env][..., None, :] + np.sqrt(variances[env])[..., None, :] * noise
        return self.observe(z), y, z

    def observe(self, z: np.ndarray) -> np.ndarray:
        """Mix latent features [..., d_c + d_e] into inputs [..., d]."""
        return z if self.mixing is None else z @ self.mixing.T

    def latent(self, x: np.ndarray) -> np.ndarray:
        """Recover latent features [..., d_c + d_e] from inputs [..., d]."""
        return x if self.mixing is None else x @ np.linalg.pinv(self.mixing).T

    def input_weights(self, weights: np.ndarray) -> np.ndarray:
        """Turn weights on z [..., d_c + d_e] into weights on x [..., d] that give the same logits."""
        return weights if self.mixing is None else weights @ np.linalg.pinv(self.mixing)

    def flip(self, env: int | None = None) -> GaussianSEM:
        """Return the model in which the environmental mean changes its sign, in one environment or (None) in all."""
        sign = np.ones((self.environments, 1))
        sign[slice(None) if env is None else env] = -1
        return dataclasses.replace(self, env_means=sign * self.env_means)

    def optimal_invariant(self) -> tuple[np.ndarray, float]:
        """Return weights on x [d] and intercept of the best predictor from z_c alone: 2 mu_c / s_c^2 and log odds."""
        latent = np.concatenate([2 * self.mu_c / self.sigma_c2, np.zeros(self.env_means.shape[1])])
        return self.input_weights(latent), self.log_odds


def random_sem(
    environments: int = 3, invariant: int = 3, spurious: int = 6, scale: float = 1.0, seed: int = 3
) -> GaussianSEM:
    """Draw a model: environmental means N(0, scale^2), unit variances, ||mu_c|| = 0.8, classes of equal size.

    Args:
        environments: E.
        invariant: d_c.
        spurious: d_e.
        scale: of the environmental means.
        seed: of their draw. Environment e has the same mean whatever E is.

    Raises:
        InputError: a count is below 1, the scale is not positive or the seed is negative.
    """
    for name, value in (("environments", environments), ("invariant", invariant), ("spurious", spurious)):
        if value < 1:
            raise InputError(f"{name}: {value} is too few; give 1 or more")
    if not scale > 0 or not math.isfinite(scale):
        raise InputError(f"scale: {scale} is not a finite number above 0; 1 is usual")
    if seed < 0:
        raise InputError(f"seed: {seed} is negative; give 0 or more")
    means = scale * np.random.default_rng(seed).normal(0, 1, (environments, spurious))
    return GaussianSEM(np.full(invariant, 0.8 / math.sqrt(invariant)), 1.0, means, np.ones(environments))


def gaussian_sem(
    environments: int = 3,
    n: int = 1000,
    invariant: int = 3,
    spurious: int = 6,
    scale: float = 1.0,
    flipped: bool = True,
    seed: int = 3,
) -> Dataset:
    """Sample a dataset from the model of `random_sem`.

    Args:
        environments: training environments, "train0" onwards.
        n: examples of each environment, at least 20, so that both classes occur.
        invariant: d_c.
        spurious: d_e.
        scale: of the environmental means.
        flipped: whether there is one more environment, "flipped", to be held out: it has equal parts of all the others
            with their environmental means negated.
        seed: of everything random in it.

    Returns:
        Inputs [n, invariant + spurious] float32, labels 0 and 1 for y=-1 and y=+1. The identity names every parameter.

    Raises:
        InputError: see `random_sem`; or n is below 20; or there would be fewer than two environments.

    Example:
        >>> gaussian_sem(environments=2, n=50).environment_names
        ('train0', 'train1', 'flipped')
    """
    sem = random_sem(environments, invariant, spurious, scale, seed)
    if n < 20:
        raise InputError(f"n: {n} examples may lack a class; give 20 or more")
    if environments + flipped < 2:
        raise InputError("environments: 1 alone is no dataset; give 2 or more, or flipped=True")
    generator = np.random.default_rng([seed, 1])  # apart from the stream that drew the means
    x, y, _ = sem.sample(np.arange(environments), n, generator)
    rooms = [Environment(f"train{e}", x[e].astype(np.float32), _classes(y[e])) for e in range(environments)]
    if flipped:
        x, y, _ = sem.flip().sample(np.arange(n) % environments, 1, generator)
        rooms.append(Environment("flipped", x[:, 0].astype(np.float32), _classes(y[:, 0])))
    identity = (
        f"GaussianSEM(environments={environments},n={n},invariant={invariant},spurious={spurious},"
        f"scale={float(scale)},flipped={bool(flipped)},seed={seed})"
    )
    return Dataset(identity, tuple(rooms), ("-1", "+1"), "linear", 100)


def _classes(y: np.ndarray) -> np.ndarray:
    return (y > 0).astype(np.int64)
