"""Feature maps that see no label: what certificates against label flips may be computed on."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from lightning_modules.certification.label_flips.ridge import check_features
from lightning_modules.certification.label_flips.thresholds import Floats
from lightning_modules.errors import InputError

KINDS = ("raw", "pca", "fourier")

_PAIRS = 2000  # of training inputs, for the typical distance


class FeatureMap:
    """A map from inputs to features, fitted on training inputs alone.

    Args:
        kind: "raw" (the inputs), "pca" (the leading principal components, centred, not scaled) or "fourier" (random
            features of a Gaussian kernel whose width is the median distance of training inputs).
        size: number of features; 0 for raw.
        seed: of the random directions, phases and pairs of "fourier".

    Raises:
        InputError: an unknown kind, or a size that does not go with it.

    Example:
        >>> features = FeatureMap.parse("pca:50").fit(train_inputs)
        >>> F, H = features(train_inputs), features(test_inputs)

    Source of "fourier": Rahimi & Recht, "Random Features for Large-Scale Kernel Machines", NeurIPS 2007.
    """

    def __init__(self, kind: str, size: int = 0, seed: int = 0) -> None:
        if kind not in KINDS:
            raise InputError(f"features: unknown {kind!r}; choose raw, pca:NUMBER or fourier:NUMBER")
        if (kind == "raw") != (size == 0) or size < 0:
            wanted = "takes no number" if kind == "raw" else "needs a number of features above 0, e.g. pca:50"
            raise InputError(f"features: {kind} {wanted}")
        self.kind, self.size, self.seed = kind, size, seed
        self._shift: Floats | None = None  # raw: zeros; pca: mean; fourier: phases
        self._matrix: Floats | None = None  # [inputs, features]; None for raw

    @classmethod
    def parse(cls, text: str, seed: int = 0) -> FeatureMap:
        """Read "raw", "pca:50" or "fourier:500".

        Raises:
            InputError: anything else.
        """
        kind, colon, number = text.partition(":")
        if colon and not (number.isascii() and number.isdigit()):
            raise InputError(f"features: {number!r} in {text!r} is no number; write e.g. pca:50")
        return cls(kind, int(number) if colon else 0, seed)

    def fit(self, X: ArrayLike) -> FeatureMap:
        """Learn from training inputs [n, d], never from labels or test inputs; returns itself.

        Raises:
            InputError: inputs that are not finite numbers, none, or fewer than there shall be principal components.
        """
        inputs = check_features(X, "X")
        n, d = inputs.shape
        if not n:
            raise InputError("X: has no rows; give training inputs")
        if self.kind == "pca":
            self._shift = inputs.mean(0)
            self._matrix = self._components(inputs - self._shift)
        elif self.kind == "fourier":
            generator = np.random.default_rng(self.seed)
            pairs = generator.integers(n, size=(2, _PAIRS))
            distances = np.linalg.norm(inputs[pairs[0]] - inputs[pairs[1]], axis=1)
            width = float(np.median(distances[distances > 0])) if (distances > 0).any() else 1.0
            self._matrix = generator.standard_normal((d, self.size)) / width
            self._shift = generator.uniform(0, 2 * math.pi, self.size)
        else:
            self._shift = np.zeros(d)
        return self

    def __call__(self, X: ArrayLike) -> Floats:
        """Compute the features [n, k] float64 of inputs [n, d].

        Raises:
            InputError: not fitted, or inputs that are not finite numbers or of another width than in training.
        """
        if self._shift is None:
            raise InputError("features: are not fitted; call fit with the training inputs first")
        inputs = check_features(X, "X", len(self._shift) if self._matrix is None else len(self._matrix))
        if self._matrix is None:
            return inputs
        if self.kind == "pca":
            components: Floats = (inputs - self._shift) @ self._matrix
            return components
        waves: Floats = math.sqrt(2 / self.size) * np.cos(inputs @ self._matrix + self._shift)
        return waves

    def describe(self) -> str:
        """What results are labelled with, e.g. "raw", "pca:50" or "fourier:500,seed=0"; `parse` reads the first part."""
        if self.kind == "raw":
            return "raw"
        return f"{self.kind}:{self.size}" + (f",seed={self.seed}" if self.kind == "fourier" else "")

    def _components(self, centred: Floats) -> Floats:
        """The leading eigenvectors of the covariance, [d, size], by the smaller of the two Gram matrices."""
        n, d = centred.shape
        most = min(n - 1, d)
        if self.size > most:
            raise InputError(
                f"features: pca:{self.size} is more than the {most} components {n} inputs have; ask for less"
            )
        if d <= n:
            _, vectors = np.linalg.eigh(centred.T @ centred)
            return vectors[:, ::-1][:, : self.size]
        _, _, rows = np.linalg.svd(centred, full_matrices=False)
        components: Floats = rows[: self.size].T
        return components
