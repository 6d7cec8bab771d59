"""Data for `ContrastiveEstimator`: simulated Gaussians, digits, and rows of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from lightning_modules.density.gaussian_means import GaussianMeanProblem
from lightning_modules.density.models import GaussianNoise
from lightning_modules.density.pairs import NoisePairs, Rows, spread_rows, whitening
from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import Choice, IntLogUniform


class GaussianPairs(NoisePairs):
    """Two Gaussians with identity covariance, whose means lie `separation` apart along the diagonal; `tau_star` is known.

    Args:
        dimension: d.
        separation: |mu_star - mu_noise|.
        shift: of both along the diagonal; the noise's mean is there, the data's at shift + separation.
        n: rows for training, and for validation.
        batch_size: rows of data in a step.
        noise_ratio: rows of noise to each of data.
        copies: a pass goes so often through the data, each time beside new noise.
        seed: of everything random in them.

    Raises:
        InputError: for a value out of range.
    """

    def __init__(
        self,
        dimension: int = 16,
        separation: float = 1.0,
        shift: float = 0.0,
        n: int = 2000,
        batch_size: Annotated[int, IntLogUniform(32, 2049)] = 256,
        noise_ratio: int = 1,
        copies: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(dimension, "standard", batch_size, noise_ratio, copies, seed)
        if n < 1:
            raise InputError(f"n: {n} rows are asked for; give 1 or more")
        direction = np.full(dimension, dimension**-0.5)
        self._problem = GaussianMeanProblem((shift + separation) * direction, shift * direction)
        self._n = n
        self.tau_star = torch.from_numpy(self._problem.tau_star).float()

    def _load(self, generator: torch.Generator) -> tuple[Rows, Rows]:
        mean = torch.from_numpy(self._problem.mu_star).float()
        drawn = (torch.randn(2 * self._n, self.dimension, generator=generator) + mean).numpy()
        return Rows(drawn, np.arange(self._n)), Rows(drawn, np.arange(self._n, 2 * self._n))

    def _law(self, train: Rows) -> GaussianNoise:
        return GaussianNoise(torch.from_numpy(self._problem.mu_noise).float(), torch.ones(self.dimension))


class DigitVectors(NoisePairs):
    """Digits made continuous by U(0, 1) on their grey levels, whitened by the training part's principal components.

    Args:
        digits: "Digits", scikit-learn's 1,797 of 64 pixels, or "MNIST", 5,000 of 784.
        dimension: principal components kept.
        noise_law: "standard", or fitted to the training part: "diagonal", "full".
        batch_size: rows of data in a step.
        noise_ratio: rows of noise to each of data.
        copies: a pass goes so often through the data, each time beside new noise.
        seed: of everything random in them.

    Raises:
        InputError: for a value out of range.
    """

    def __init__(
        self,
        digits: str = "Digits",
        dimension: int = 16,
        noise_law: Annotated[str, Choice(("standard", "diagonal", "full"))] = "standard",
        batch_size: Annotated[int, IntLogUniform(32, 1025)] = 256,
        noise_ratio: int = 1,
        copies: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(dimension, noise_law, batch_size, noise_ratio, copies, seed)
        if digits not in ("Digits", "MNIST"):
            raise InputError(f"digits: unknown data {digits!r}; choose from Digits, MNIST")
        self._digits = digits

    def _load(self, generator: torch.Generator) -> tuple[Rows, Rows]:
        from lightning_modules.data.examples import load_examples

        levels = []
        parts: tuple[Literal["train", "test"], ...] = ("train", "test")
        for part in parts:
            inputs = torch.from_numpy(np.array(load_examples(self._digits, part).inputs)).flatten(1).float()
            steps = inputs * 16 if self._digits == "Digits" else inputs
            levels.append(steps + torch.rand(steps.shape, generator=generator))
        center, projection, self.condition = whitening(levels[0], self.dimension)
        found = [Rows(x.numpy(), np.arange(len(x)), center, projection) for x in levels]
        return found[0], found[1]


class FileVectors(NoisePairs):
    """Rows of a file or folder of your own; a fifth, the same whatever the seed, is for validation.

    A .npy file is mapped and read batch by batch, so it may be larger than memory; tables and images are held.

    Args:
        path: a .npy file [n, ...]; a feature table (.parquet, .arrow, .feather, .npz); or what `load_examples` reads: a
            folder of images by class, CIFAR-10's folder, an npz file of inputs and labels.
        whiten: whether rows are whitened to `dimension` principal components of the training part; else they must have as
            many numbers.
        dimension: d.
        noise_law: as `DigitVectors`.
        batch_size: rows of data in a step.
        noise_ratio: rows of noise to each of data.
        copies: a pass goes so often through the data, each time beside new noise.
        seed: of everything random in them.

    Raises:
        InputError: for a value out of range.
    """

    def __init__(
        self,
        path: str = "",
        whiten: bool = True,
        dimension: int = 16,
        noise_law: Annotated[str, Choice(("standard", "diagonal", "full"))] = "standard",
        batch_size: Annotated[int, IntLogUniform(32, 1025)] = 256,
        noise_ratio: int = 1,
        copies: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(dimension, noise_law, batch_size, noise_ratio, copies, seed)
        if not path:
            raise InputError("path: is empty; give a .npy file, a feature table or a folder of images")
        self._path, self._whiten = path, whiten

    def _load(self, generator: torch.Generator) -> tuple[Rows, Rows]:
        array = _open(self._path)
        order = np.random.default_rng(0).permutation(len(array))
        border = len(order) - len(order) // 5
        train, validation = Rows(array, np.sort(order[:border])), Rows(array, np.sort(order[border:]))
        sample = spread_rows(train)
        if not bool(torch.isfinite(sample).all()):
            raise InputError(f"{self._path}: has NaN or infinite values; clean or drop those rows")
        if not self._whiten:
            return train, validation
        center, projection, self.condition = whitening(sample, self.dimension)
        return (
            Rows(array, np.sort(order[:border]), center, projection),
            Rows(array, np.sort(order[border:]), center, projection),
        )


def _open(path: str) -> Any:
    if path.lower().endswith(".npy"):
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as an array ({error}); save it with numpy.save") from error
        if array.ndim < 2 or array.dtype.kind not in "fiu":
            raise InputError(f"{path}: has {array.ndim} axes of {array.dtype}; give numbers [n, ...]")
        return array
    from lightning_modules.data.archives import is_table
    from lightning_modules.data.examples import load_examples
    from lightning_modules.data.tables import load_feature_rows

    file = Path(path)
    tables = (".parquet", ".pq", ".arrow", ".feather", ".ipc")
    if file.is_file() and (file.suffix.lower() in tables or (file.suffix.lower() == ".npz" and is_table(file))):
        return load_feature_rows(file).features
    inputs = load_examples(path, "all").inputs
    return inputs.astype(np.float32) / 255 if inputs.dtype == np.uint8 else inputs
