"""Images of one size as rows of pixels, for methods that learn from rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightning_modules.data.folder import open_image, read_file
from lightning_modules.errors import InputError


def read_equal_images(files: Sequence[Path]) -> np.ndarray:
    """Decode images of any mode as RGB, one a row.

    Args:
        files: one or more.

    Returns:
        [n, 3 * height * width] uint8, channel by channel, in the files' order.

    Raises:
        InputError: naming the file: it is missing, no image or damaged, or of another size than the first.
    """
    first = _image(files[0])
    pixels = np.empty((len(files), first.size), np.uint8)
    for row, file in enumerate(files):
        image = _image(file)
        if image.shape != first.shape:
            sizes = [f"{shape[1]} x {shape[2]}" for shape in (image.shape, first.shape)]
            raise InputError(f"{file}: is {sizes[0]} pixels, {files[0].name} {sizes[1]}; scale all images to one size")
        pixels[row] = image.reshape(-1)
    return pixels


def _image(file: Path) -> np.ndarray:
    return open_image(file, read_file(file), None, lambda image: image)
