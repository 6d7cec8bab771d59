"""Images of one size as rows of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightning_modules.data.folder import open_image, read_file
from lightning_modules.errors import InputError


def read_equal_images(files: Sequence[Path]) -> np.ndarray:
    """Decode images of any mode as RGB: rows [n, 3 x height x width] uint8.

    Args:
        files: in the order of the rows, at least one.

    Raises:
        InputError: naming the file: it is missing, damaged or no image, or of another size than the first.
    """
    first = _decode(files[0])
    pixels = np.empty((len(files), first.size), np.uint8)
    for row, file in enumerate(files):
        image = _decode(file)
        if image.shape != first.shape:
            sizes = [f"{shape[1]} x {shape[2]}" for shape in (image.shape, first.shape)]
            raise InputError(f"{file}: is {sizes[0]} pixels, {files[0].name} {sizes[1]}; scale all images to one size")
        pixels[row] = image.reshape(-1)
    return pixels


def _decode(file: Path) -> np.ndarray:
    return open_image(file, read_file(file), None, lambda image: image)
