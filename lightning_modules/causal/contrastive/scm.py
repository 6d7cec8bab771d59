"""Linear Gaussian structural causal models, perfect interventions on them, and the exact log-odds of the two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_modules.errors import InputError

Array = np.ndarray

_EULER = 0.5772156649015329
NOISES: dict[str, Callable[[np.random.Generator, tuple[int, int]], Array]] = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape),
    "laplace": lambda rng, shape: rng.laplace(0, 0.5**0.5, shape),
    "exponential": lambda rng, shape: rng.exponential(1, shape) - 1,
    "gumbel": lambda rng, shape: rng.gumbel(-_EULER * 6**0.5 / np.pi, 6**0.5 / np.pi, shape),
    "uniform": lambda rng, shape: rng.uniform(-(3**0.5), 3**0.5, shape),
}
"""Noise of mean 0 and variance 1; all but the first violate the method's model."""


@dataclass(frozen=True)
class Intervention:
    """A perfect stochastic intervention: the target's parents are cut, and Z_target ~ N(mean, var).

    Args:
        target: index of the latent.
        mean: eta.
        var: v', above 0.
    """

    target: int
    mean: float = 0.0
    var: float = 1.0

    def __post_init__(self) -> None:
        if not (self.var > 0 and np.isfinite(self.mean)):
            raise InputError(f"intervention: mean {self.mean}, var {self.var}; give a finite mean and a positive var")


def sample_er_dag(d: int, avg_degree: float, rng: np.random.Generator) -> Array:
    """Draw a directed Erdos-Renyi graph with weights +-U[0.25, 1] and a random order of the nodes.

    Args:
        d: nodes, 2 or more.
        avg_degree: k; k d / 2 edges are expected. At d - 1 or more every pair of nodes has an edge.
        rng: what draws.

    Returns:
        W [d, d]; W[i, j] != 0 is the edge i -> j.

    Raises:
        InputError: d < 2, or a negative degree.

    Source: experiments of arXiv 2306.02235 (the authors' code counts edges as k d / 2, the paper's text as k d).
    """
    if d < 2 or not avg_degree >= 0:
        raise InputError(f"d: {d} nodes of degree {avg_degree}; give 2 nodes or more and a degree of 0 or more")
    present = np.triu(rng.random((d, d)) < avg_degree / (d - 1), 1)
    weights = rng.uniform(0.25, 1.0, (d, d)) * rng.choice([-1.0, 1.0], (d, d)) * present
    order = rng.permutation(d)
    shuffled: Array = weights[np.ix_(order, order)]
    return shuffled


class LinearGaussianSCM:
    """Z = W^T Z + eps with eps_j ~ N(0, v_j).

    Args:
        W: [d, d] weights, W[i, j] of the edge i -> j; acyclic.
        var: [d] variances v of the noise, above 0.
        rng: what `sample` draws from; None: a generator seeded with 0.
        noise: law of eps, one of NOISES; `log_odds_exact` is exact for "gaussian" only.

    Raises:
        InputError: unknown noise, W is not square, has a cycle or NaN, d < 2, or a variance is not positive.
    """

    def __init__(
        self,
        W: Array,  # noqa: N803 - the field's name
        var: Array,
        rng: np.random.Generator | None = None,
        noise: str = "gaussian",
    ) -> None:
        if noise not in NOISES:
            raise InputError(f"noise: unknown {noise!r}; choose from {', '.join(NOISES)}")
        W = np.array(W, np.float64)  # noqa: N806
        var = np.array(var, np.float64)
        if W.ndim != 2 or W.shape[0] != W.shape[1] or len(W) < 2:
            raise InputError(f"W: has shape {list(W.shape)}; give [d, d] with d of 2 or more")
        if not np.isfinite(W).all():
            raise InputError("W: has NaN or infinite weights; give finite ones")
        if not is_acyclic(W):
            raise InputError("W: has a cycle; give the weights of a directed acyclic graph")
        if var.shape != (len(W),) or not (np.isfinite(var) & (var > 0)).all():
            raise InputError(f"var: give {len(W)} positive variances, one a node")
        self.W, self.var, self.noise = W, var, noise
        self._rng = rng if rng is not None else np.random.default_rng(0)

    @property
    def d(self) -> int:
        """Number of latents."""
        return len(self.W)

    @property
    def B(self) -> Array:  # noqa: N802
        """[d, d] B = diag(v^-1/2) (I - W^T), so that B Z ~ N(0, I)."""
        found: Array = (np.eye(self.d) - self.W.T) / np.sqrt(self.var)[:, None]
        return found

    @property
    def precision(self) -> Array:
        """[d, d] inverse covariance B^T B of Z."""
        found: Array = self.B.T @ self.B
        return found

    def sample(self, n: int, target: int | None = None, mean: float = 0.0, var: float | None = None) -> Array:
        """Draw rows of Z.

        Args:
            n: rows.
            target: the latent to intervene on; None: observational rows.
            mean: of the target under the intervention.
            var: its variance there; None: that of its noise.

        Returns:
            [n, d] float64.

        Raises:
            InputError: no such target, or a variance that is not positive.
        """
        noise = NOISES[self.noise](self._rng, (n, self.d)) * np.sqrt(self.var)
        if target is None:
            found: Array = np.linalg.solve(np.eye(self.d) - self.W.T, noise.T).T
            return found
        cut = self._cut(Intervention(target, mean, float(self.var[self._node(target)]) if var is None else var))
        noise[:, target] *= np.sqrt(cut.var[target] / self.var[target])
        noise[:, target] += mean
        found = np.linalg.solve(np.eye(self.d) - cut.W.T, noise.T).T
        return found

    def intervened(self, intervention: Intervention) -> tuple[Array, Array]:
        """Mean [d] and precision [d, d] of Z under an intervention."""
        cut = self._cut(intervention)
        shift = np.zeros(self.d)
        shift[intervention.target] = intervention.mean
        return np.linalg.solve(np.eye(self.d) - cut.W.T, shift), cut.precision

    def standardised_weights(self) -> Array:
        """[d, d] W[i, j] sd(Z_i) / sd(Z_j): what can be compared with an estimate whose coordinates have free scales."""
        sd = np.sqrt(np.diag(np.linalg.inv(self.precision)))
        found: Array = self.W * sd[:, None] / sd
        return found

    def _node(self, target: int) -> int:
        if not 0 <= target < self.d:
            raise InputError(f"target: {target} is no node; give one of 0 to {self.d - 1}")
        return target

    def _cut(self, intervention: Intervention) -> LinearGaussianSCM:
        weights, var = self.W.copy(), self.var.copy()
        weights[:, self._node(intervention.target)] = 0
        var[intervention.target] = intervention.var
        return LinearGaussianSCM(weights, var, self._rng, self.noise)


def is_acyclic(W: Array) -> bool:  # noqa: N803
    """Whether the graph of the nonzero entries [d, d] has no directed cycle, self-loops included."""
    left = np.asarray(W) != 0
    while len(left):
        sources = ~left.any(0)
        if not sources.any():
            return False
        left = left[np.ix_(~sources, ~sources)]
    return True


def log_odds_exact(scm: LinearGaussianSCM, z: Array, intervention: Intervention) -> Array:
    """log p_obs(x) - log p_int(x) [n] at x = f(z), for latents z [n, d].

    (z_t - eta)^2 / (2 v') - (b_t . z)^2 / 2 + log(v' / v_t) / 2 with b_t row t of B; the Jacobian of f cancels, and so do the
    other nodes.

    Source: arXiv 2306.02235, section 4 (rederived).
    """
    t = scm._node(intervention.target)
    z = np.asarray(z, np.float64)
    quadratic = (z[:, t] - intervention.mean) ** 2 / intervention.var - (z @ scm.B[t]) ** 2
    found: Array = 0.5 * (quadratic + np.log(intervention.var / scm.var[t]))
    return found


def cross_entropy_at(
    scm: LinearGaussianSCM, interventions: Sequence[Intervention], z_obs: Array, z_int: Array
) -> Array:
    """Cross-entropy [d] of the exact log-odds on given latents, of each environment against the observational one.

    mean softplus(-g_t(z_obs)) + mean softplus(g_t(z_int_t)), natural logarithm; 2 log 2 where nothing can be told apart.

    Args:
        scm: the model.
        interventions: [d].
        z_obs: [n, d] observational latents.
        z_int: [d, m, d] those of the environments.
    """
    found = []
    for intervention, rows in zip(interventions, z_int, strict=True):
        against, own = log_odds_exact(scm, z_obs, intervention), log_odds_exact(scm, rows, intervention)
        found.append(np.logaddexp(0, -against).mean() + np.logaddexp(0, own).mean())
    return np.array(found)


def bayes_cross_entropy(
    scm: LinearGaussianSCM, interventions: Sequence[Intervention], n: int = 100_000, seed: int = 0
) -> float:
    """Smallest cross-entropy any classifier can have, mean over environments, by n draws of each.

    The draws have a standard error of about 0.6 / sqrt(n).
    """
    own = LinearGaussianSCM(scm.W, scm.var, np.random.default_rng([seed, 71]))
    rows = np.stack([own.sample(n, i.target, i.mean, i.var) for i in interventions])
    return float(cross_entropy_at(scm, interventions, own.sample(n), rows).mean())
