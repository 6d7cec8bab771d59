"""Shifts of real digits at graded strengths, to measure how well anybody foresees a classifier's error.

5,000 MNIST digits are dealt once for a seed: 2,000 to train a classifier on, 1,500 labelled source rows, 1,500 target rows. Every
shift changes the same 1,500 target digits, their share of classes, or which of them there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lightning_modules.data.digits import load_digits, rotate
from lightning_modules.data.environments import Dataset, Environment
from lightning_modules.errors import InputError

Array = np.ndarray
Change = Callable[[Array, np.random.Generator], Array]

TRAINING, SOURCE = 2_000, 1_500
"""Digits to train on, and labelled source rows; the others are the target's."""

_SIDE = 28


@dataclass(frozen=True)
class DigitShift:
    """One shift.

    Args:
        name: kind and strength, e.g. "rotate 30".
        images: changes images [n, 28, 28] in [0, 1]; None leaves them.
        keep: share of each class's rows that stays, [10]; None keeps all.
        group: "thin", "thick", "small" or "large": only the third of the digits that are so.
    """

    name: str
    images: Change | None = None
    keep: tuple[float, ...] | None = None
    group: str | None = None


def _noise(strength: float) -> Change:
    def change(images: Array, generator: np.random.Generator) -> Array:
        return np.clip(images + strength * generator.standard_normal(images.shape), 0, 1)

    return change


def _blur(sigma: float) -> Change:
    def change(images: Array, generator: np.random.Generator) -> Array:
        from scipy.ndimage import gaussian_filter

        blurred: Array = gaussian_filter(images, (0, sigma, sigma))
        return blurred

    return change


def _contrast(factor: float) -> Change:
    return lambda images, generator: factor * images


def _colour(paper: float) -> Change:
    """Ink on paper of a lighter or inverted colour: 0 is black paper, 1 turns white ink into black."""
    return lambda images, generator: images + paper * (1 - 2 * images)


def _translate(most: int) -> Change:
    def change(images: Array, generator: np.random.Generator) -> Array:
        moved = np.zeros_like(images)
        steps = generator.integers(-most, most + 1, (len(images), 2))
        for image, target, (down, right) in zip(images, moved, steps, strict=True):
            rows, columns = _overlap(down), _overlap(right)
            target[rows[0], columns[0]] = image[rows[1], columns[1]]
        return moved

    return change


def _overlap(step: int) -> tuple[slice, slice]:
    """Where pixels land, and where they come from, along an axis."""
    return slice(max(0, step), _SIDE + min(0, step)), slice(max(0, -step), _SIDE + min(0, -step))


def _patch(side: int) -> Change:
    def change(images: Array, generator: np.random.Generator) -> Array:
        covered = images.copy()
        corners = generator.integers(0, _SIDE - side + 1, (len(images), 2))
        for image, (top, left) in zip(covered, corners, strict=True):
            image[top : top + side, left : left + side] = 0
        return covered

    return change


def _zoom(factor: float) -> Change:
    def change(images: Array, generator: np.random.Generator) -> Array:
        return affine(images, np.full(len(images), 0.0), np.full(len(images), factor), np.zeros((len(images), 2)))

    return change


def affine(images: Array, degrees: Array, zoom: Array, moved: Array) -> Array:
    """Turn, zoom and move images [n, 28, 28] about their centre, each by its own amount, bilinearly.

    Args:
        images: in [0, 1].
        degrees: [n] counter-clockwise.
        zoom: [n] above 1 enlarges.
        moved: [n, 2] pixels down and right.
    """
    import torch

    angle = np.radians(degrees)
    cosine, sine = np.cos(angle) / zoom, np.sin(angle) / zoom
    right, down = 2 * moved[:, 1] / _SIDE, 2 * moved[:, 0] / _SIDE
    # Where each pixel of the result comes from, in coordinates of -1 to 1: x' = cos x - sin y, of what was moved back.
    matrix = np.stack([cosine, -sine, -cosine * right + sine * down, sine, cosine, -sine * right - cosine * down], 1)
    theta = torch.from_numpy(matrix.reshape(-1, 2, 3)).float()
    values = torch.from_numpy(np.ascontiguousarray(images, np.float32))[:, None]
    grid = torch.nn.functional.affine_grid(theta, list(values.shape), align_corners=False)
    found: Array = torch.nn.functional.grid_sample(values, grid, align_corners=False)[:, 0].numpy()
    return found


def _rotate(degrees: float) -> Change:
    return lambda images, generator: rotate(images, degrees)


def _fewer(classes: range, share: float) -> tuple[float, ...]:
    return tuple(share if c in classes else 1.0 for c in range(10))


def digit_shifts() -> list[DigitShift]:
    """All shifts of the suite, weak to strong within a kind."""
    kinds: list[tuple[str, Callable[..., Change], tuple[float, ...]]] = [
        ("rotate", _rotate, (15, 30, 45, 60)),
        ("noise", _noise, (0.2, 0.4, 0.6)),
        ("blur", _blur, (1, 2, 3)),
        ("contrast", _contrast, (0.5, 0.25, 0.1)),
        ("colour", _colour, (0.2, 0.4, 1)),
        ("translate", _translate, (2, 4, 6)),
        ("patch", _patch, (7, 11, 14)),
        ("zoom", _zoom, (0.7, 1.25, 1.5)),
    ]
    shifts = [DigitShift("none")]
    shifts += [DigitShift(f"{kind} {s:g}", make(s)) for kind, make, strengths in kinds for s in strengths]
    shifts += [DigitShift(f"label shift {share:g}", keep=_fewer(range(5), share)) for share in (0.5, 0.2, 0.05)]
    shifts += [DigitShift(f"only {group}", group=group) for group in ("thin", "thick", "small", "large")]
    return shifts


@dataclass(frozen=True)
class DealtDigits:
    """Digits dealt for a seed.

    Args:
        training: images [2000, 28, 28] float32 in [0, 1] and labels, to train a classifier on.
        source: 1,500 labelled ones that it does not see.
        target: 1,500 for the shifts.
        seed: of the dealing, and of every shift's own randomness.
    """

    training: tuple[Array, Array]
    source: tuple[Array, Array]
    target: tuple[Array, Array]
    seed: int

    @classmethod
    def deal(cls, seed: int) -> DealtDigits:
        """Deal the digits."""
        images, labels = load_digits()
        order = np.random.default_rng([seed, 11]).permutation(len(labels))
        parts = np.split(order, [TRAINING, TRAINING + SOURCE])
        dealt = [(images[rows].astype(np.float32) / 255, labels[rows]) for rows in parts]
        return cls(dealt[0], dealt[1], dealt[2], seed)

    def shifted(self, shift: DigitShift) -> tuple[Array, Array]:
        """Target images [m, 28, 28] and labels [m] under a shift; the same ones each time."""
        images, labels = self.target
        generator = np.random.default_rng([self.seed, 12, *shift.name.encode()])
        kept = np.ones(len(labels), bool)
        if shift.keep is not None:
            kept = generator.random(len(labels)) < np.array(shift.keep)[labels]
        if shift.group is not None:
            kept &= _in_group(images, labels, shift.group)
        images, labels = images[kept], labels[kept]
        if shift.images is not None:
            images = shift.images(images, generator).astype(np.float32)
        return images, labels


def _in_group(images: Array, labels: Array, group: str) -> Array:
    """The third of each class that is thinnest, thickest, smallest or largest."""
    ink = images > 0.5
    if group in ("thin", "thick"):
        # Ink over its outline: about half the width of the stroke.
        inner = ink[:, 1:-1, 1:-1] & ink[:, :-2, 1:-1] & ink[:, 2:, 1:-1] & ink[:, 1:-1, :-2] & ink[:, 1:-1, 2:]
        measure = ink.sum((1, 2)) / np.maximum(1, ink.sum((1, 2)) - inner.sum((1, 2)))
    elif group in ("small", "large"):
        measure = ink.any(2).sum(1) * ink.any(1).sum(1).astype(np.float64)
    else:
        raise InputError(f"group: unknown {group!r}; choose thin, thick, small or large")
    measure = measure + 1e-9 * np.arange(len(measure))  # no ties
    chosen = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        rows = np.flatnonzero(labels == c)
        ranks = measure[rows].argsort().argsort()
        third = len(rows) // 3
        chosen[rows] = ranks < third if group in ("thin", "small") else ranks >= len(rows) - third
    return chosen


def training_digits(seed: int = 0, augment: bool = True, copies: int = 4) -> Dataset:
    """The 2,000 digits that the suite's classifiers are trained on, as environments.

    Args:
        seed: of the dealing.
        augment: add copies turned by up to 30 degrees, zoomed by 0.8 to 1.25 and moved by up to 3 pixels.
        copies: of each digit.

    Returns:
        Environments "plain", "turned 1", ...; inputs [n, 1, 28, 28] float32. Without `augment` "plain" alone, halved into
        "plain" and "other", since a dataset has two environments or more.

    Raises:
        InputError: for less than one copy.
    """
    if copies < 1:
        raise InputError(f"dataset ShiftedDigits: copies is {copies}; give 1 or more")
    images, labels = DealtDigits.deal(seed).training
    classes = tuple(map(str, range(10)))
    if not augment:
        halves = (("plain", slice(None, TRAINING // 2)), ("other", slice(TRAINING // 2, None)))
        parts = tuple(Environment(name, images[rows, None], labels[rows]) for name, rows in halves)
        return Dataset(f"ShiftedDigits(seed={seed},augment=False)", parts, classes, "small-cnn", 100)
    generator = np.random.default_rng([seed, 13])
    environments = [Environment("plain", images[:, None], labels)]
    for copy in range(copies):
        count = len(images)
        degrees = generator.uniform(-30, 30, count)
        zoom = np.exp(generator.uniform(-1, 1, count) * np.log(1.25))
        turned = affine(images, degrees, zoom, generator.uniform(-3, 3, (count, 2)))
        environments.append(Environment(f"turned {copy + 1}", turned[:, None], labels))
    return Dataset(f"ShiftedDigits(seed={seed},copies={copies})", tuple(environments), classes, "small-cnn", 100)
