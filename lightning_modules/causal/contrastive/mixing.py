"""Injective maps from latents to observations: linear, a random network, and rendered balls."""

from __future__ import annotations

import colorsys
import math
from typing import Literal

import numpy as np
import torch
from torch import nn

from lightning_modules.errors import InputError

Array = np.ndarray
Kind = Literal["linear", "mlp", "balls"]
KINDS = ("linear", "mlp", "balls")

REACH = 0.5
"""Ball centres are drawn with both coordinates within (-REACH, REACH), the borders of the picture."""

_RADIUS = 0.08
_SLOPE = 0.2
_ROWS = 4096


class Mixing:
    """f: latents [n, d] -> observations [n, dx].

    Args:
        kind: "linear" (a Gaussian matrix), "mlp" (hidden layers with LeakyReLU 0.2, torch's default first weights) or "balls" (d / 2
            coloured balls on white, latents their coordinates; rows are the pixels of [3, size, size] images in uint8).
        d: latents.
        dx: observed features; of balls 3 size^2.
        seed: of the weights.
        width: of the hidden layers of "mlp".
        depth: their number.

    Raises:
        InputError: dx < d, an unknown kind, or balls with an odd d or a dx that is no 3 size^2.

    Source: experiments of arXiv 2306.02235: 4 hidden layers of 512; radius 0.08 of the width.
    """

    def __init__(self, kind: str, d: int, dx: int, seed: int, width: int = 512, depth: int = 4) -> None:
        if kind not in KINDS:
            raise InputError(f"mixing: unknown {kind!r}; choose from {', '.join(KINDS)}")
        if dx < d:
            raise InputError(f"dim_x: {dx} features cannot hold {d} latents; give {d} or more")
        self.kind, self.d, self.dx = kind, d, dx
        generator = torch.Generator().manual_seed(seed)
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        if kind == "balls":
            self.size = image_side(dx)
            if d % 2:
                raise InputError(f"dim_z: balls have two coordinates each, {d} is odd; give an even number")
        elif kind == "linear":
            self._layers = [(torch.randn(d, dx, generator=generator, dtype=torch.float64), torch.zeros(dx))]
        else:
            sizes = [d, *[width] * depth, dx]
            for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
                bound = 1 / math.sqrt(fan_in)
                weight, bias = torch.empty(fan_in, fan_out), torch.empty(fan_out)
                self._layers.append(
                    (
                        weight.uniform_(-bound, bound, generator=generator),
                        bias.uniform_(-bound, bound, generator=generator),
                    )
                )

    @property
    def is_image(self) -> bool:
        """Whether rows are pixels."""
        return self.kind == "balls"

    @torch.no_grad()
    def __call__(self, z: Array) -> Array:
        """Observations [n, dx] of latents [n, d], float32, or uint8 pixels."""
        if z.ndim != 2 or z.shape[1] != self.d:
            raise InputError(f"z: has shape {list(z.shape)}; give [n, {self.d}]")
        if self.is_image:
            return render_balls(z, self.size).reshape(len(z), -1)
        parts = []
        for start in range(0, len(z), _ROWS):
            values = torch.from_numpy(z[start : start + _ROWS]).to(self._layers[0][0].dtype)
            for number, (weight, bias) in enumerate(self._layers):
                values = torch.addmm(bias.to(values), values, weight)
                if number + 1 < len(self._layers):
                    values = nn.functional.leaky_relu(values, _SLOPE)
            parts.append(values.float())
        found: Array = torch.cat(parts).numpy()
        return found


def image_side(dx: int) -> int:
    """Side of the square RGB image that has dx numbers.

    Raises:
        InputError: there is none.
    """
    side = math.isqrt(dx // 3)
    if dx != 3 * side * side or side < 8:
        raise InputError(f"dim_x: {dx} is no 3 x side x side of an RGB image with a side of 8 or more; give e.g. 3072")
    return side


def render_balls(z: Array, size: int) -> Array:
    """Draw d / 2 balls of different hues on white, with soft edges so that positions finer than a pixel show.

    Args:
        z: [n, d] coordinates x_0, y_0, x_1, ... in (-0.5, 0.5), the picture's borders.
        size: side in pixels.

    Returns:
        [n, 3, size, size] uint8; later balls lie over earlier ones.
    """
    count, radius = z.shape[1] // 2, _RADIUS * size
    colours = np.array([colorsys.hsv_to_rgb(ball / count, 1.0, 0.9) for ball in range(count)], np.float32)
    at = np.arange(size, dtype=np.float32) + 0.5
    pixels = np.empty((len(z), 3, size, size), np.uint8)
    for start in range(0, len(z), _ROWS // 4):
        centres = ((z[start : start + _ROWS // 4] + REACH) * size).astype(np.float32)
        image = np.ones((len(centres), 3, size, size), np.float32)
        for ball in range(count):
            x, y = centres[:, 2 * ball, None, None], centres[:, 2 * ball + 1, None, None]
            distance = np.sqrt((at - x) ** 2 + (at[:, None] - y) ** 2)
            cover = np.clip(radius - distance + 0.5, 0, 1)[:, None]
            image += cover * (colours[ball][None, :, None, None] - image)
        pixels[start : start + len(centres)] = np.round(255 * image)
    return pixels
