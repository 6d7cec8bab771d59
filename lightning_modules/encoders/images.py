"""Images as an encoder's items: arrays or files, scaled to one square, decoded while the batch before is encoded."""

from __future__ import annotations

import abc
import contextlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_modules.data.folder import open_image, read_file
from lightning_modules.encoders.adapter import FrozenEncoder, check_finite, item_name, to_numpy
from lightning_modules.errors import InputError


class ImageEncoder(FrozenEncoder):
    """An encoder of images: uint8 RGB arrays [H, W, 3], or paths of image files."""

    kind = "image"
    # Convolutions on one core took 5 ms an image with 8 or 16 at once and 11 with 64, whose maps leave the caches.
    cpu_batch = 16
    image_size: int

    @abc.abstractmethod
    def __call__(self, pixels: Tensor) -> Tensor:
        """Compute features [B, d] float32 of pixels [B, 3, image_size, image_size] uint8."""

    def encode(self, items: Sequence[Any], batch_size: int | None = None, threads: int = 1) -> np.ndarray:
        """Scale images to the encoder's square and encode them; while one batch is encoded the next is decoded.

        Args:
            items: n uint8 RGB arrays [H, W, 3], or paths of image files.
            batch_size: images encoded at once; features depend on it no more than on the order of floating-point sums.
                None: what is fast where the weights are.
            threads: that decode.

        Returns:
            Features [n, d] float32.

        Raises:
            InputError: naming an item that is no image, or whose features are NaN or infinite; the model is in train
                mode.
        """
        self._check_eval()
        size = self._batch(batch_size)
        # A column of file names is a column of paths, and errors then name them as files.
        items = [Path(item) if isinstance(item, str) else item for item in items]
        features = np.empty((len(items), self.dimension), dtype=np.float32)
        with ThreadPoolExecutor(threads) as pool:

            def decode(start: int) -> list[Future[np.ndarray]]:
                stop = min(start + size, len(items))
                return [pool.submit(read_pixels, items[row], self.image_size, row) for row in range(start, stop)]

            ahead = decode(0)
            for start in range(0, len(items), size):
                batch, ahead = ahead, decode(start + size)
                try:
                    pixels = torch.from_numpy(np.stack([image.result() for image in batch]))
                except InputError:
                    pool.shutdown(cancel_futures=True)
                    raise
                features[start : start + size] = to_numpy(self(pixels))
        return check_finite(features, items)


def read_pixels(item: Any, size: int, row: int = 0) -> np.ndarray:
    """Scale an image, without keeping its aspect ratio, to [3, size, size] uint8; what is transparent turns white.

    Args:
        item: uint8 RGB array [H, W, 3], or the path of an image file.
        size: side in pixels.
        row: what errors call an array.

    Raises:
        InputError: naming the item, if it is no image or is damaged.
    """
    if isinstance(item, os.PathLike):
        return _read_file(Path(item), size)
    array = np.asarray(item)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        what = f"{array.dtype} {list(array.shape)}" if isinstance(item, np.ndarray) else type(item).__name__
        raise InputError(f"{item_name(item, row)}: is {what}; give a path, or a uint8 RGB array [height, width, 3]")
    if array.shape[:2] != (size, size):
        array = np.asarray(_fit(Image.fromarray(array), size))
    return array.transpose(2, 0, 1)


def _read_file(file: Path, size: int) -> np.ndarray:
    content = read_file(file)
    with contextlib.suppress(OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # named below
        with Image.open(io.BytesIO(content)) as opened:
            if opened.has_transparency_data:
                # The colours that a file keeps under what is transparent are arbitrary, mostly black.
                image = opened.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                return np.asarray(_fit(Image.alpha_composite(white, image).convert("RGB"), size)).transpose(2, 0, 1)
    return open_image(file, content, (2 * size, 2 * size), lambda image: _fit(image, size))


def _fit(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BILINEAR)
