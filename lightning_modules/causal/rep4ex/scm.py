"""Simulated worlds: actions move hidden causes linearly, which are seen through an injective map and confounded with the outcome.

Z = alpha M A + V,   X = g0(Z),   Y = l(Z) + U,   (U, V) independent of A, U and V dependent.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from lightning_modules.causal.rep4ex import checks
from lightning_modules.causal.rep4ex.checks import Array
from lightning_modules.causal.rep4ex.sprites import Sprite
from lightning_modules.errors import InputError

Mixing = Literal["mlp", "curve", "linear", "sprites"]
Outcome = Literal["sine", "linear"]
MIXINGS = ("mlp", "curve", "linear", "sprites")
OUTCOMES = ("sine", "linear")

_DRAWS = 200
_SLOPE = 0.2


class Sample(NamedTuple):
    """Rows of a world; Z is hidden from every method but the oracle.

    Args:
        a: [n, k] actions.
        z: [n, d] latents.
        x: [n, dx] features; of sprites, pixels in uint8.
        y: [n] outcomes.
    """

    a: Array
    z: Array
    x: Array
    y: Array


class InterventionSCM:
    """A world in which effects of actions can be extrapolated.

    A is uniform on (-gamma, gamma)^k, V is N(0, I). `M` [k, d] has orthonormal columns (1 for k = d = 1). Mixings: "mlp", twice a
    well-conditioned [d, d] matrix and a leaky ReLU, then a linear lift; "curve" (d = 1), a kinked monotone function beside sines of it,
    lifted; "linear"; "sprites" (d = 2, dx a square), pictures of a handwritten digit whose place is Z (see `Sprite`). Outcomes: "sine", sum_j (2 sin z_j + 0.3 z_j^2) / sqrt d, or "linear", z . (1, -2, 1, ...). U is
    confounding * sum_j (1.5 V_j + tanh 2 V_j) / sqrt d + N(0, 0.3^2).

    Args:
        dim_a: k.
        dim_z: d, at most k.
        dim_x: dx, at least d.
        alpha: strength of the effect of A on Z.
        gamma: half the width of the actions' support.
        mixing: g0.
        outcome: l.
        confounding: strength of the hidden dependence of Y on V.
        seed: of the world and of its samples.
        noise_x: standard deviation of noise added to X, relative to that of each feature; breaks an assumption.
        nonlinearity: weight of sin(2 A M) added to A M before alpha; breaks an assumption.

    Raises:
        InputError: k < d, dx < d, an unknown name, or strengths that are negative or gamma 0.

    Source: arXiv 2310.04295, section 2; the laws are ours, after the paper's, which could not be confirmed.
    """

    def __init__(
        self,
        dim_a: int = 2,
        dim_z: int = 2,
        dim_x: int = 10,
        alpha: float = 2.0,
        gamma: float = 1.0,
        mixing: str = "mlp",
        outcome: str = "sine",
        confounding: float = 1.0,
        seed: int = 0,
        noise_x: float = 0.0,
        nonlinearity: float = 0.0,
    ) -> None:
        checks.dimensions(dim_a, dim_z, dim_x)
        for name, word, known in (("mixing", mixing, MIXINGS), ("outcome", outcome, OUTCOMES)):
            if word not in known:
                raise InputError(f"{name}: unknown {word!r}; choose one of {', '.join(known)}")
        if mixing == "curve" and (dim_z != 1 or dim_x < 2):
            raise InputError(
                f"mixing: curve is for one latent and two features or more, got {dim_z} and {dim_x}; use mlp"
            )
        if mixing == "sprites" and dim_z != 2:
            raise InputError(f"mixing: sprites have two latents, down and right, got {dim_z}; use mlp")
        strengths = {"alpha": alpha, "confounding": confounding, "noise_x": noise_x, "nonlinearity": nonlinearity}
        for name, value in strengths.items():
            if not (np.isfinite(value) and value >= 0):
                raise InputError(f"{name}: is {value}; give 0 or more")
        if not (np.isfinite(gamma) and gamma > 0):
            raise InputError(f"gamma: is {gamma}; give a positive half width of the actions' support")
        self.dim_a, self.dim_z, self.dim_x = dim_a, dim_z, dim_x
        self.alpha, self.gamma, self.mixing, self.outcome = alpha, gamma, mixing, outcome
        self.confounding, self.seed, self.noise_x, self.nonlinearity = confounding, seed, noise_x, nonlinearity
        generator = np.random.default_rng([seed, 71])
        self.effect = np.ones((1, 1))
        if dim_a > 1:
            self.effect = np.linalg.qr(generator.standard_normal((dim_a, dim_z)))[0]
        self._draw_mixing(generator)
        reference = self.mix(self._latents(*self._causes(2000, np.random.default_rng([seed, 72]))))
        self._feature_spread = reference.std(0)

    def sample(self, n: int, part: int = 0) -> Sample:
        """Draw rows; the same part of the same world is the same rows.

        Args:
            n: number of rows.
            part: 0 for training; another number for rows that are independent of these.
        """
        generator = np.random.default_rng([self.seed, 73, part])
        a, v = self._causes(n, generator)
        z = self._latents(a, v)
        x = self.mix(z)
        if self.noise_x:
            x = x + self.noise_x * self._feature_spread * generator.standard_normal(x.shape)
        if self.mixing == "sprites":
            x = np.clip(np.rint(x), 0, 255).astype(np.uint8)
        y = self.effect_on_y(z) + self.confounder(v) + 0.3 * generator.standard_normal(n)
        return Sample(a, z, x, y)

    def mix(self, z: Array) -> Array:
        """g0: features [n, dx] of latents [n, d], without noise."""
        if self.mixing == "sprites":
            return self._sprite(z)
        if self.mixing == "curve":
            kinked = np.where(z > 0, z, 0.25 * z) + 0.5 * np.tanh(2 * (z - 1))
            sines = 0.3 * np.sin(kinked * self._frequencies + self._phases)
            lifted: Array = np.concatenate([kinked, sines], 1) @ self._lift
            return lifted
        for weight in self._layers:
            z = z @ weight
            z = np.where(z > 0, z, _SLOPE * z)
        found: Array = z @ self._lift
        return found

    def effect_on_y(self, z: Array) -> Array:
        """l: [n] of latents [n, d]."""
        if self.outcome == "linear":
            found: Array = z @ np.array([1.0 if j % 2 == 0 else -2.0 for j in range(self.dim_z)])
        else:
            found = (2 * np.sin(z) + 0.3 * z**2).sum(1) / np.sqrt(self.dim_z)
        return found

    def confounder(self, v: Array) -> Array:
        """E[U | V], [n] of [n, d]; its mean is 0."""
        found: Array = self.confounding * (1.5 * v + np.tanh(2 * v)).sum(1) / np.sqrt(self.dim_z)
        return found

    def do_mean(self, a: Array, n_mc: int = 20000) -> Array:
        """E[Y | do(A = a)] for each row, by Monte Carlo over V in pairs +-V, so that what is odd in V cancels.

        Args:
            a: [m, k].
            n_mc: draws of V.
        """
        a = checks.matrix("a", a)
        if a.shape[1] != self.dim_a:
            raise InputError(f"a: has {a.shape[1]} columns, the world {self.dim_a} actions; make them equal")
        half = np.random.default_rng([self.seed, 74]).standard_normal((n_mc // 2, self.dim_z))
        v = np.concatenate([half, -half])
        level = self.confounder(v).mean()
        return np.array([self.effect_on_y(centre + v).mean() + level for centre in self._moved(a)])

    def conditional_mean(self, z: Array, a: Array) -> Array:
        """E[Y | X = g0(z), do(A = a)], [n] of latents z [n, d] and actions a [n, k]."""
        found: Array = self.effect_on_y(z) + self.confounder(z - self._moved(a))
        return found

    def _causes(self, n: int, generator: np.random.Generator) -> tuple[Array, Array]:
        a = generator.uniform(-self.gamma, self.gamma, (n, self.dim_a))
        return a, generator.standard_normal((n, self.dim_z))

    def _moved(self, a: Array) -> Array:
        linear: Array = a @ self.effect
        moved: Array = self.alpha * (linear + self.nonlinearity * np.sin(2 * linear))
        return moved

    def _latents(self, a: Array, v: Array) -> Array:
        found: Array = self._moved(a) + v
        return found

    def _draw_mixing(self, generator: np.random.Generator) -> None:
        d = self.dim_z
        self._layers: list[Array] = []
        if self.mixing == "curve":
            self._frequencies = generator.standard_normal(8)
            self._phases = generator.uniform(-2, 2, 8)
            self._lift = generator.standard_normal((9, self.dim_x)) / 3
            return
        if self.mixing == "sprites":
            self._sprite = Sprite(self.dim_x)
            return
        for _ in range(2 if self.mixing == "mlp" else 0):
            drawn = generator.standard_normal((_DRAWS, d, d))
            drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
            self._layers.append(drawn[np.linalg.cond(drawn).argmin()])
        self._lift = generator.standard_normal((d, self.dim_x)) / np.sqrt(d)
