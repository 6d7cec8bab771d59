"""Both stages together: an encoder in which actions act linearly, and the effect of its latents."""

from __future__ import annotations

import warnings
from typing import Protocol

import numpy as np

from lightning_modules.causal.rep4ex import checks
from lightning_modules.causal.rep4ex.checks import Array
from lightning_modules.causal.rep4ex.control import AdditiveControlFunction
from lightning_modules.causal.rep4ex.pack import Fit, Trained, Training, train_autoencoders
from lightning_modules.errors import InputError

UNCOVERED = 0.5
"""From this share of V on whose latents leave the training box, a prediction is warned about."""


class Encoder(Protocol):
    """Anything that gives latents: `MMRAutoencoder`, or a network of a person's own."""

    def encode(self, x: Array) -> Array:
        """Latents [n, d] of features [n, dx]."""


class CoverageWarning(UserWarning):
    """An action asks for latents that the training data do not hold."""


class InterventionExtrapolator:
    """Rep4Ex-CF: E[Y | do(A = a*)] for actions a* that were never taken.

    Args:
        dim_z: d, at most the number of actions.
        encoder: a trained one; None: an AE-MMR is trained in `fit`.
        control: the second stage; None: `AdditiveControlFunction()`.
        lambda_mmr: of the AE-MMR; 0 is the plain autoencoder.
        bandwidth: of its kernel, in median distances of actions.
        restarts: trainings of it, of which the best on held-out rows is kept (see `train_autoencoders`).
        training: of it; None: the defaults.
        seed: of the first weights.

    Example:
        >>> world = InterventionSCM(dim_a=1, dim_z=1, dim_x=5, alpha=1.0, gamma=1.2, mixing="curve")
        >>> a, _, x, y = world.sample(10000)
        >>> InterventionExtrapolator(dim_z=1).fit(x, a, y).predict_do(np.array([[2.0]]))  # doctest: +SKIP
    """

    def __init__(
        self,
        dim_z: int = 1,
        encoder: Encoder | None = None,
        control: AdditiveControlFunction | None = None,
        lambda_mmr: float = 30.0,
        bandwidth: float = 0.3,
        restarts: int = 2,
        training: Training | None = None,
        seed: int = 0,
    ) -> None:
        if restarts < 1:
            raise InputError(f"restarts: is {restarts}; give 1 or more")
        self.encoder, self.control = encoder, control or AdditiveControlFunction()
        self._dim_z, self._lambda, self._bandwidth = dim_z, lambda_mmr, bandwidth
        self._restarts, self._training, self._seed = restarts, training, seed
        self.trained: Trained | None = None

    def fit(self, x: Array, a: Array, y: Array) -> InterventionExtrapolator:
        """Train the encoder, unless one was given, and the second stage on its latents.

        Args:
            x: [n, dx] features; uint8 for pixels (see `Fit`).
            a: [n, k] actions.
            y: [n] outcomes.

        Warns:
            UserWarning: the autoencoder reconstructs too badly to be injective; more restarts or wider networks mend it.

        Raises:
            InputError: k < d, dx < d, n <= k + 1, constant or collinear actions, lengths that differ, NaN.
        """
        x, a = checks.features("x", x), checks.matrix("a", a)
        checks.same_length(x=x, a=a, y=np.asarray(y))
        if self.encoder is None:
            fit = Fit(x, a, self._dim_z, self._lambda, self._bandwidth, self._seed)
            self.trained = train_autoencoders([fit], self._training, self._restarts)[0]
            if self.trained.folded:
                share = f"{self.trained.reconstruction:.1%}"
                message = f"the autoencoder leaves {share} of the features' variance: it may be folded; raise restarts or dim_z"
                warnings.warn(message, UserWarning, stacklevel=2)
            self.encoder = self.trained.module
        self.control.fit(self.encoder.encode(x), a, y)
        return self

    def predict_do(self, a_star: Array) -> Array:
        """E[Y | do(A = a*)], [m] of actions [m, k].

        Warns:
            CoverageWarning: for actions of which `uncovered` is true.

        Raises:
            InputError: another number of columns, NaN, or before `fit`.
        """
        found = self.control.predict_do(a_star)
        flagged = int(self.uncovered(a_star).sum())
        if flagged:
            message = f"{flagged} of {len(found)} actions move most latents out of the training latents' range: the effect there is a guess"
            warnings.warn(message, CoverageWarning, stacklevel=2)
        return found

    def predict_conditional(self, x: Array, a_star: Array) -> Array:
        """E[Y | X = x, do(A = a*)], [n] of features [n, dx] and actions [n, k] or [1, k].

        Raises:
            InputError: shapes that do not fit, NaN, or before `fit`.
        """
        if self.encoder is None:
            raise InputError("predict: nothing has been fitted; call fit first")
        return self.control.predict_conditional(self.encoder.encode(x), a_star)

    def uncovered(self, a_star: Array) -> Array:
        """Whether [m] more than half of W a* + c + V lies outside the 0.5-99.5% box of the training latents."""
        return self.control.outside(a_star) > UNCOVERED
