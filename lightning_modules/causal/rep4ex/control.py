"""The second stage: the effect of latents on the outcome, with the actions' residual as control function."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from lightning_modules.causal.rep4ex import checks
from lightning_modules.causal.rep4ex.checks import Array
from lightning_modules.causal.rep4ex.features import FeatureMap, FourierFeatures, Monomials
from lightning_modules.causal.rep4ex.regression import AdditiveNetworks, RegressionTraining, fit_networks, outcome
from lightning_modules.causal.rep4ex.statistics import linear_invariance
from lightning_modules.errors import InputError

Kind = Literal["ridge", "polynomial", "mlp"]
KINDS = ("ridge", "polynomial", "mlp")

BOX = (0.005, 0.995)
"""Quantiles of each training latent between which the second stage counts as known."""

_MLP_SHIFTS = 3000


class AdditiveControlFunction:
    """E[Y | Z, V] = nu(Z) + psi(V) + const, V the residual of the regression of Z on A; then

    E[Y | do(A = a*)] = mean_i nu(W a* + c + V_i) - mean_i nu(Z_i) + mean(Y).

    The sum is what identifies nu; a joint function of (Z, V) could not extrapolate. Latents need be right up to an invertible
    affine map only: before features are made, Z and V are multiplied by chol(Cov(V)^-1).

    Args:
        kind: "ridge", closed form on [z, Fourier features of z] and the same of v; "polynomial", closed form on monomials; "mlp", two
            networks.
        penalty: of the ridge regression, on all but the constant; 0 takes the least-squares solution of smallest norm.
        features: number of Fourier features of each term.
        bandwidth: of these, in standard deviations of V.
        degree: of the monomials; 1 is two-stage least squares.
        control: whether psi(V) is there; without it the regression is confounded.
        seed: of the features, or of the networks.
        training: of the networks; None: the defaults.

    Raises:
        InputError: an unknown kind, or numbers out of range.

    Source: arXiv 2310.04295, section 5 (control function after Newey, Powell, Vella 1999); the closed form is ours.
    """

    def __init__(
        self,
        kind: Kind = "ridge",
        penalty: float = 1.0,
        features: int = 200,
        bandwidth: float = 2.0,
        degree: int = 2,
        control: bool = True,
        seed: int = 0,
        training: RegressionTraining | None = None,
    ) -> None:
        if kind not in KINDS:
            raise InputError(f"kind: unknown {kind!r}; choose one of {', '.join(KINDS)}")
        if not (penalty >= 0 and math.isfinite(penalty)):
            raise InputError(f"penalty: is {penalty}; give 0 or more")
        if features < 1 or degree < 1 or not bandwidth > 0:
            raise InputError(f"features: {features}, degree {degree} and bandwidth {bandwidth} must be positive")
        self.kind, self.penalty, self.control, self.seed = kind, penalty, control, seed
        self._features, self._bandwidth, self._degree, self._training = features, bandwidth, degree, training
        self._fitted = False

    def fit(self, z: Array, a: Array, y: Array) -> AdditiveControlFunction:
        """Fit.

        Args:
            z: [n, d] latents of the training rows.
            a: [n, k] actions.
            y: [n] outcomes.

        Raises:
            InputError: k < d, n <= k + 1, constant or collinear actions, lengths that differ, NaN, or latents that actions determine
                (nothing is left to control with).
        """
        z, a, y = checks.matrix("z", z), checks.matrix("a", a), outcome(y)
        checks.same_length(z=z, a=a, y=y)
        checks.dimensions(a.shape[1], z.shape[1])
        self.w, self.c, v = linear_invariance(z, a)
        covariance = v.T @ v / len(v)
        size = np.maximum(z.std(0), 1e-300)
        if np.linalg.matrix_rank(covariance / np.outer(size, size), tol=1e-13, hermitian=True) < len(covariance):
            raise InputError("z: actions determine a combination of the latents, or two are equal; give fewer latents")
        self._scale = np.linalg.cholesky(np.linalg.inv(covariance))
        self._centre, self._mean_y = z.mean(0), float(y.mean())
        self._box = np.quantile(z, BOX, axis=0)
        self._v, self._moved = v, self._scaled(z)
        parts = [self._moved, v @ self._scale] if self.control else [self._moved]
        if self.kind == "mlp":
            self._networks: AdditiveNetworks = fit_networks(parts, y, self.seed, self._training)
            self._mean_nu = float(self._networks.term(0, parts[0]).mean())
        else:
            self._fit_linear(parts, y)
        self._fitted = True
        return self

    @property
    def coefficients(self) -> Array:
        """Of nu [d] in the latents' own units, for kind "polynomial" of degree 1.

        Raises:
            InputError: another kind or degree, or before `fit`.
        """
        self._require_fit()
        if self.kind != "polynomial" or self._degree != 1:
            raise InputError("coefficients: only a polynomial of degree 1 has them; use predict_do")
        found: Array = self._scale @ self._beta[0]
        return found

    def predict_do(self, a_star: Array) -> Array:
        """E[Y | do(A = a*)], [m].

        Args:
            a_star: [m, k]; may lie outside the training actions.

        Raises:
            InputError: another number of columns, NaN, or before `fit`.
        """
        centres = self._scaled(self._centres(a_star))
        v = self._v @ self._scale
        if self.kind == "mlp":
            v = v[np.linspace(0, len(v) - 1, min(len(v), _MLP_SHIFTS)).astype(int)]
            nu = np.array([self._networks.term(0, centre + v).mean() for centre in centres])
        else:
            nu = self._maps[0].shifted_mean(centres, v) @ self._beta[0]
        found: Array = nu - self._mean_nu + self._mean_y
        return found

    def predict_conditional(self, z: Array, a_star: Array) -> Array:
        """E[Y | X = x, do(A = a*)] of latents z = phi(x): nu(z) + psi(z - W a* - c) + const, [n].

        Args:
            z: [n, d].
            a_star: [n, k], or [1, k] for all.

        Raises:
            InputError: shapes that do not fit, NaN, or before `fit`.
        """
        centres, z = self._centres(a_star), checks.matrix("z", z)
        if z.shape[1] != len(self.c):
            raise InputError(f"z: has {z.shape[1]} columns, was fitted with {len(self.c)}; make them equal")
        if len(centres) != 1:
            checks.same_length(z=z, a_star=centres)
        parts = [self._scaled(z), (z - centres) @ self._scale][: 2 if self.control else 1]
        if self.kind == "mlp":
            return self._networks.predict(*parts)
        terms = zip(self._maps, self._beta, self._means, parts, strict=True)
        found: Array = self._mean_y + sum((phi(part) - mean) @ beta for phi, beta, mean, part in terms)
        return found

    def outside(self, a_star: Array) -> Array:
        """Share [m] of the V sample for which W a* + c + V leaves the box of 99% of each training latent.

        About 0.01 d inside the support; above 0.5 a prediction says little, because nu was not seen there.

        Raises:
            InputError: as `predict_do`.
        """
        centres = self._centres(a_star)
        low, high = self._box
        return np.array([((c + self._v < low) | (c + self._v > high)).any(1).mean() for c in centres])

    def _fit_linear(self, parts: list[Array], y: Array) -> None:
        dim = parts[0].shape[1]
        self._maps: list[FeatureMap] = []
        for number in range(len(parts)):
            fourier = FourierFeatures(dim, self._features, self._bandwidth, 2 * self.seed + number)
            self._maps.append(fourier if self.kind == "ridge" else Monomials(dim, self._degree))
        blocks = [phi(part) for phi, part in zip(self._maps, parts, strict=True)]
        self._means = [block.mean(0) for block in blocks]
        design = np.concatenate(blocks, 1) - np.concatenate(self._means)
        if self.penalty:
            normal = design.T @ design
            normal[np.diag_indices_from(normal)] += self.penalty
            beta = np.linalg.solve(normal, design.T @ (y - self._mean_y))
        else:
            spread = np.maximum(design.std(0), 1e-300)
            beta = np.linalg.lstsq(design / spread, y - self._mean_y, rcond=None)[0] / spread
        self._beta = np.split(beta, np.cumsum([block.shape[1] for block in blocks])[:-1])
        self._mean_nu = float(self._means[0] @ self._beta[0])

    def _scaled(self, z: Array) -> Array:
        """Latents with mean 0, in the units of V."""
        found: Array = (z - self._centre) @ self._scale
        return found

    def _centres(self, a_star: Array) -> Array:
        """W a* + c, [m, d]."""
        self._require_fit()
        a_star = checks.matrix("a_star", a_star)
        if a_star.shape[1] != len(self.w):
            raise InputError(
                f"a_star: has {a_star.shape[1]} columns, was fitted with {len(self.w)} actions; make them equal"
            )
        found: Array = a_star @ self.w + self.c
        return found

    def _require_fit(self) -> None:
        if not self._fitted:
            raise InputError("predict: nothing has been fitted; call fit first")
