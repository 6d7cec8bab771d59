"""Plant a signal whose gradients oppose each other in real images: one direction, added to examples of two classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lightning_modules.errors import InputError

Array = np.ndarray
MODES = ("opposing", "same", "none")


@dataclass(frozen=True)
class Planted:
    """Images with a signal in some of them.

    Args:
        x: images [n, ...] float32.
        a: numbers of the first group's [m].
        b: of the second group's [m].
    """

    x: Array
    a: Array
    b: Array


def plant_opposing_signal(
    x: Array,
    y: Array,
    class_a: int = 3,
    class_b: int = 8,
    m: int = 30,
    magnitude: float = 10.0,
    keep: float = 0.25,
    mode: Literal["opposing", "same", "none"] = "opposing",
    seed: int = 0,
) -> Planted:
    """Make m images of each of two groups `keep` times themselves plus `magnitude` times the constant image of length 1.

    The signal pulls a network towards class_a through one group and towards class_b through the other, so that its best use of
    it is none ("opposing"). In the control both groups are of class_a, so that the signal helps ("same"). With "none" the groups
    are those of "opposing" and nothing is planted.

    Args:
        x: images [n, ...], best with the mean image taken off.
        y: labels [n].
        class_a: of the first group.
        class_b: of the second.
        m: images in each group.
        magnitude: length of what is added.
        keep: factor of the image that it is added to.
        mode: which of the three.
        seed: of the choice of images.

    Raises:
        InputError: an unknown mode, m below 1, a class with too few images, or one class for both groups.
    """
    if mode not in MODES:
        raise InputError(f"mode: unknown {mode!r}; choose from {', '.join(MODES)}")
    if m < 1:
        raise InputError(f"m: is {m}; give 1 or more")
    if mode != "same" and class_a == class_b:
        raise InputError(f"class_b: is class_a, {class_a}; give another class, or mode same")
    generator = np.random.default_rng(seed)
    wanted = {class_a: 2 * m} if mode == "same" else {class_a: m, class_b: m}
    chosen = []
    for label, count in wanted.items():
        rows = np.flatnonzero(y == label)
        if len(rows) < count:
            raise InputError(f"m: {count} images of class {label} are wanted, there are {len(rows)}; give a smaller m")
        chosen.append(generator.permutation(rows)[:count])
    a, b = np.split(np.concatenate(chosen), 2)
    planted = np.array(x, dtype=np.float32)
    if mode != "none":
        rows = np.concatenate([a, b])
        size = int(np.prod(planted.shape[1:]))
        planted[rows] = keep * planted[rows] + np.float32(magnitude / size**0.5)
    return Planted(planted, a, b)
