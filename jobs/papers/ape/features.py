"""Icons and digits with their captions, encoded once: a later cell maps what an earlier one stored."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.papers.ape.names import (
    HELD_OUT_SUBCATEGORIES,
    OTHER_STYLE,
    OWN_STYLE,
    PLAIN,
    SHIFTED_DIGITS,
    STYLES,
    TEMPLATES,
    TEST,
    TRAINING_DIGITS,
    WORDS,
)
from lightning_modules.data.digits import load_digits, rotate
from lightning_modules.data.icons import Icons, read_icons
from lightning_modules.encoders import Encoder, cached_features, efficientnet_lite0, minilm, read_pixels

_SIDE = 32
"""Of the images that a tower from scratch sees, and of digits before they are encoded."""
_FIXED = 0
"""Seed of every split; another value would be other data."""


@functools.cache
def image_encoder() -> Encoder:
    """EfficientNet-lite0 at 128 pixels."""
    return efficientnet_lite0()


@functools.cache
def text_encoder() -> Encoder:
    """MiniLM."""
    return minilm()


def encode_texts(texts: Sequence[str]) -> np.ndarray:
    """Vectors [n, 384] of texts."""
    return text_encoder().encode(list(texts))


@dataclass(frozen=True)
class IconData:
    """Icons, parted: row numbers into all of them."""

    icons: Icons
    training: np.ndarray
    test: np.ndarray

    def names(self, rows: np.ndarray) -> list[str]:
        """Captions of some."""
        return [self.icons.names[row] for row in rows]

    def texts(self) -> np.ndarray:
        """Vectors [n, 384] of all captions."""
        return cached_features(text_encoder(), list(self.icons.names))

    def images(self, style: str = OWN_STYLE) -> np.ndarray:
        """Vectors of all images of the style that is trained on, [n, 1280]; of the other one of the test's, [m, 1280]."""
        files = self.icons.images[STYLES[style]]
        chosen = [files[row] for row in self.test] if style == OTHER_STYLE else list(files)
        return cached_features(image_encoder(), chosen)

    def pixels(self, style: str, rows: np.ndarray) -> np.ndarray:
        """Images [n, 3, 32, 32] uint8 of some icons."""
        files = self.icons.images[STYLES[style]]
        return np.stack([read_pixels(files[row], _SIDE) for row in rows])


def icon_data(data: str, subcategories: bool = False) -> IconData:
    """The icons of a folder: a fifth of them held out at random, or all of 20 subcategories."""
    icons = read_icons(Path(data))
    generator = np.random.default_rng(_FIXED)
    if subcategories:
        kinds = sorted(set(icons.subcategories))
        held = {kinds[i] for i in generator.permutation(len(kinds))[:HELD_OUT_SUBCATEGORIES]}
        out = np.array([kind in held for kind in icons.subcategories])
        return IconData(icons, np.flatnonzero(~out), np.flatnonzero(out))
    order = generator.permutation(len(icons.names))
    return IconData(icons, order[TEST:], order[:TEST])


@dataclass(frozen=True)
class DigitData:
    """Images [n, 32, 32] uint8 of digits, dark on white, and their labels [n]; each image of the training has one of the captions."""

    training: np.ndarray
    labels: np.ndarray
    captions: tuple[str, ...]

    def vectors(self) -> np.ndarray:
        """Vectors [n, 1280] of the training images."""
        return encode_digits(self.training)


@functools.cache
def training_digits() -> DigitData:
    """1,000 of scikit-learn's digits, with captions from three templates in turn."""
    images, labels = _digits()
    images, labels = images[:TRAINING_DIGITS], labels[:TRAINING_DIGITS]
    captions = [TEMPLATES[i % len(TEMPLATES)].replace("{}", WORDS[label]) for i, label in enumerate(labels)]
    return DigitData(images, labels, tuple(captions))


def held_out_digits(environment: str = PLAIN) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 32, 32] uint8 and labels [n] of the test: digits that are not in training, as they are or shifted."""
    if environment == "MNIST":
        images, labels = load_digits()
        chosen = np.random.default_rng(_FIXED).permutation(len(labels))[:SHIFTED_DIGITS]
        return 255 - np.stack([_resized(image, _SIDE) for image in images[chosen]]), labels[chosen]
    images, labels = (side[TRAINING_DIGITS:] for side in _digits())
    if environment == PLAIN:
        return images, labels
    images, labels = images[:SHIFTED_DIGITS], labels[:SHIFTED_DIGITS]
    if environment == "inverted":
        return 255 - images, labels
    if environment == "rotated":
        return 255 - np.rint(rotate(255 - images.astype(np.float32), 30)).astype(np.uint8), labels
    assert environment == "small"
    shrunk = np.full_like(images, 255)
    shrunk[:, 6:26, 6:26] = np.stack([_resized(image, 20) for image in images])
    return shrunk, labels


def encode_digits(images: np.ndarray) -> np.ndarray:
    """Vectors [n, 1280] of images [n, s, s]."""
    return cached_features(image_encoder(), list(colours(images)))


def colours(images: np.ndarray) -> np.ndarray:
    """Images [n, s, s] with three equal channels, [n, s, s, 3]."""
    return np.repeat(images[..., None], 3, axis=3)


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits as load_small_digits

    found: Any = load_small_digits()
    order = np.random.default_rng(_FIXED).permutation(len(found.target))
    images = np.rint(found.images[order] * (255 / 16)).astype(np.uint8)
    return 255 - np.stack([_resized(image, _SIDE) for image in images]), found.target[order].astype(np.int64)


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
