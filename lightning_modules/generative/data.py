"""LightningDataModules of images whose pixels are intensities, and of simulated hierarchies; by import path or in code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules.errors import InputError
from lightning_modules.generative.linear_gaussian import LinearGaussianHierarchy
from lightning_modules.generative.partition import binarise
from lightning_modules.hyperparameters import IntLogUniform
from lightning_modules.lightning_import import pl


def load_images(pixels: int = 784, seed: int = 0, images: str = "") -> tuple[Tensor, Tensor]:
    """Read images, shuffle them, and keep a fifth to test on, binarised once.

    Args:
        pixels: 784 for 5,000 MNIST digits of 28x28, 64 for scikit-learn's 1,797 digits of 8x8; D of images of one's own.
        seed: of the shuffle and of the test images' binarisation.
        images: images of one's own in place of these, as `data.examples.load_examples` reads them: an npz file, a folder of
            class folders (OMNIGLOT and the like), or one with CIFAR-10's files. Labels are not used.

    Returns:
        Intensities [n, D] in [0, 1] to train on, and binary test images [m, D]; float32.

    Raises:
        InputError: there are no such images, or an image has another number of pixels.
    """
    from lightning_modules.data.digits import load_digits
    from lightning_modules.data.examples import as_tensor, load_examples

    if images:
        found = as_tensor(load_examples(images, "all", num_classes=None).inputs).flatten(1).float()
    elif pixels == 784:
        found = torch.from_numpy(load_digits()[0]).flatten(1).float() / 255
    elif pixels == 64:
        found = as_tensor(load_examples("Digits", "all").inputs).flatten(1).float()
    else:
        raise InputError(f"pixels: {pixels}; give 784 (MNIST digits) or 64 (8x8 digits), or images of your own")
    if found.shape[1] != pixels:
        raise InputError(f"pixels: {pixels}, but an image of {images} has {found.shape[1]}; give that number")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(found)))
    shuffled, border = found[order], len(found) - len(found) // 5
    return shuffled[:border], binarise(shuffled[border:], torch.Generator().manual_seed(seed))


def hold_out(images: Tensor, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cut off the last images, binarised once, to choose settings by.

    Args:
        images: intensities [n, D], shuffled.
        count: how many.
        seed: of the binarisation; another stream than that of `load_images`.

    Returns:
        Intensities [n - count, D] and binary images [count, D].
    """
    border = len(images) - count
    return images[:border], binarise(images[border:], torch.Generator().manual_seed(seed + 1))


class BinarisedImages(pl.LightningDataModule):
    """Images for a Bernoulli likelihood: intensities to train on, and one fixed binarisation of others to validate on.

    Both are of the four fifths that `load_images` gives to train on: what is chosen by the validation has not seen the rest.

    Args:
        pixels: see `load_images`; the module takes it, too.
        batch_size: rows of a training batch.
        seed: of the shuffle, the binarisation and the batches.
        images: see `load_images`.
        validation: number of training images that are held out to validate on; half of all at most.

    Example:
        shiftlab train --method lightning_modules.generative.module:SelfReflectiveVAE \
            --dataset lightning_modules.generative.data:BinarisedImages --steps 4000 --run runs/digits
    """

    def __init__(
        self,
        pixels: int = 784,
        batch_size: Annotated[int, IntLogUniform(32, 512)] = 100,
        seed: int = 0,
        images: str = "",
        validation: int = 600,
    ) -> None:
        super().__init__()
        _check_sizes(batch_size, validation)
        self._pixels, self._size, self._seed = pixels, batch_size, seed
        self._images, self._validation = images, validation

    def setup(self, stage: str | None = None) -> None:
        """Read the images."""
        images, _ = load_images(self._pixels, self._seed, self._images)
        self._train, self._held = hold_out(images, min(self._validation, len(images) // 2), self._seed)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of intensities [B, D] in [0, 1]."""
        return _shuffled(self._train, self._size, self._seed)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Binary images [B, D]."""
        return DataLoader(TensorDataset(self._held), batch_size=500)


class SimulatedHierarchy(pl.LightningDataModule):
    """Draws of a scalar linear-Gaussian chain, whose true likelihood is known; for likelihood "gaussian".

    Args:
        pixels: number of layers, each with one entry of x; the module takes it, too.
        batch_size: rows of a training batch.
        seed: of the draws and the batches.
        rows: how many to train on; a quarter as many to validate on.
    """

    def __init__(
        self,
        pixels: int = 4,
        batch_size: Annotated[int, IntLogUniform(32, 512)] = 256,
        seed: int = 0,
        rows: int = 20_000,
    ) -> None:
        super().__init__()
        _check_sizes(batch_size, rows // 4)
        self._model, self._size, self._seed, self._rows = LinearGaussianHierarchy(pixels), batch_size, seed, rows

    def setup(self, stage: str | None = None) -> None:
        """Draw."""
        generator = torch.Generator().manual_seed(self._seed)
        draw: Callable[[int], Tensor] = lambda n: self._model.sample(n, generator).float()  # noqa: E731
        self._train, self._test = draw(self._rows), draw(self._rows // 4)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches [B, L]."""
        return _shuffled(self._train, self._size, self._seed)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Other draws [B, L]."""
        return DataLoader(TensorDataset(self._test), batch_size=1000)


def _shuffled(x: Tensor, size: int, seed: int) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(x), batch_size=size, shuffle=True, generator=generator)


def _check_sizes(batch_size: int, rows: int) -> None:
    if batch_size < 1 or rows < 1:
        raise InputError(f"batch_size, rows: {batch_size}, {rows}; give 1 or more of each")
