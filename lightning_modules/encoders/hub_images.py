"""Pretrained image encoders from a local directory, as Hugging Face's `save_pretrained` writes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.encoders.adapter import digest, file_digest
from lightning_modules.encoders.hub import (
    check_encoder,
    hash_files,
    load_model,
    one_line,
    quiet,
    take_tower,
    trained_pooler,
)
from lightning_modules.encoders.images import ImageEncoder
from lightning_modules.errors import InputError

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLS = ("cls_token", "class_embedding")


class HubImageEncoder(ImageEncoder):
    """A frozen image encoder of transformers; call it on pixels to get features.

    Args:
        model: transformers' vision model.
        path: its directory.
        pooling: "pooler", "cls" or "mean".
        image_size: side of its images in pixels.
        rescale: pixels are multiplied by this, then normalised by
        mean: of each channel, and
        std: of each channel.
        dimension: d, numbers in a feature vector.
        notes: what a person should know, a sentence each.
    """

    def __init__(
        self,
        model: nn.Module,
        path: Path,
        pooling: str,
        image_size: int,
        rescale: float,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        dimension: int,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.pooling, self.image_size, self.rescale, self.mean, self.std = pooling, image_size, rescale, mean, std
        self._prefix = _prefix(model)
        settings = {"pooling": pooling, "image_size": image_size, "image_mean": mean, "image_std": std}
        sha256 = digest(hash_files(path, ["preprocessor_config.json"]), pooling, image_size, "bilinear on white")
        settings["encoder_config_sha256"] = file_digest(path / "config.json")
        super().__init__(model, path.name, dimension, sha256, settings, ("transformers",), notes)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Compute features [B, d] float32 of pixels [B, 3, image_size, image_size] uint8."""
        outputs = _outputs(self.model, pixels.to(self.device), self.rescale, self.mean, self.std)
        return _pool(outputs, self.pooling, self._prefix)


def load_encoder(path: str | os.PathLike[str], pooling: str = "auto", image_size: int = 224) -> HubImageEncoder:
    """Load an image encoder from a directory with config.json and weights (safetensors, or tensors of a PyTorch file).

    Images are scaled to image_size x image_size without keeping the aspect ratio, whatever the directory says about
    sizes and crops; its preprocessor_config.json gives the normalisation, ImageNet's serves where there is none. Of a
    model with a vision and a text tower the vision tower is taken.

    Args:
        path: the directory.
        pooling: "pooler" takes the model's pooler_output; "cls" its first token; "mean" the mean over patches or
            pixels; "auto" the first of these that the model has (a pooler without trained weights does not count).
        image_size: side of the images in pixels.

    Returns:
        The encoder on the CPU, float32, in eval mode.

    Raises:
        InputError: transformers is not installed; the directory holds no encoder that can be loaded; the model takes no
            images, or none of that size; it lacks what `pooling` asks for.
    """
    config = check_encoder(path, pooling)
    if image_size < 1:
        raise InputError(f"image_size: {image_size} is not positive; 224 is usual")
    path = Path(os.path.abspath(path))
    model, missing = load_model(path, config)
    if model.main_input_name != "pixel_values":
        if getattr(model, "vision_model", None) is None:
            raise InputError(f"encoder: {path}: {type(model).__name__} takes no images; give an image encoder")
        model, missing = take_tower(model, missing, "vision_model")
    trained = trained_pooler(path, model, missing)
    rescale, mean, std, notes = _normalisation(path)
    model = model.eval().requires_grad_(False)
    try:
        zeros = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
        outputs = _outputs(model, zeros, rescale, mean, std)
    except (ValueError, RuntimeError) as error:
        size = config.get("image_size", config.get("vision_config", {}).get("image_size"))
        mend = f"give --image_size {size}" if size and size != image_size else "give another"
        raise InputError(
            f"image_size: {path.name} cannot encode images of {image_size} pixels ({one_line(error)}); {mend}"
        ) from error
    if outputs.get("last_hidden_state") is None:
        raise InputError(f"encoder: {path}: {type(model).__name__} gives no features; give an image encoder")
    has_pooler = outputs.get("pooler_output") is not None and trained
    has_cls = any(name.split(".")[-1] in _CLS for name, _ in model.named_parameters())
    if pooling == "auto":
        pooling = "pooler" if has_pooler else "cls" if has_cls else "mean"
        if not trained:
            notes.append(f"the pooler of {path.name} has no trained weights: taking {pooling} instead")
    elif (pooling == "pooler" and not has_pooler) or (pooling == "cls" and not has_cls):
        what = {"cls": "CLS token", "pooler": "pooler" if trained else "trained pooler"}[pooling]
        raise InputError(f"pooling: {path.name} ({type(model).__name__}) has no {what}; choose auto or mean")
    dimension = _pool(outputs, pooling, _prefix(model)).shape[1]
    return HubImageEncoder(model, path, pooling, image_size, rescale, mean, std, dimension, tuple(notes))


@torch.inference_mode()
def _outputs(
    model: nn.Module, pixels: Tensor, rescale: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Tensor]:
    """Run the model on pixels [B, 3, h, w] uint8: `last_hidden_state` and, where it has one, `pooler_output`."""
    mean_311, std_311 = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (mean, std))
    return dict(model(pixel_values=(pixels.float() * rescale - mean_311) / std_311).items())


def _pool(outputs: dict[str, Tensor], pooling: str, prefix: int) -> Tensor:
    """Turn outputs into [B, d]: tokens come as [B, tokens, d], the pixels of convolutional networks as [B, d, h, w]."""
    if pooling == "pooler":
        return outputs["pooler_output"].flatten(1)
    states = outputs["last_hidden_state"]
    if pooling == "cls":
        return states[:, 0]
    return states[:, prefix:].mean(1) if states.ndim == 3 else states.flatten(2).mean(2)


def _prefix(model: nn.Module) -> int:
    """Count the tokens before the patches (CLS, registers)."""
    count = 0
    for name, parameter in model.named_parameters():
        kind = name.split(".")[-1]
        if kind in (*_CLS, "distillation_token"):
            count += 1
        elif kind == "register_tokens":
            count += parameter.shape[-2]
    return count


def _normalisation(path: Path) -> tuple[float, tuple[float, ...], tuple[float, ...], list[str]]:
    """Read factor, mean and standard deviation from preprocessor_config.json; notes where that leaves something open."""
    if not (path / "preprocessor_config.json").is_file():
        note = f"{path.name} has no preprocessor_config.json: images are normalised by ImageNet's mean and deviation"
        return 1 / 255, _IMAGENET_MEAN, _IMAGENET_STD, [note]
    import transformers

    processors: Any = transformers.AutoImageProcessor  # untyped
    try:
        with quiet():
            processor = processors.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"encoder: {path}/preprocessor_config.json cannot be read ({one_line(error)})") from error
    rescale = float(processor.rescale_factor) if getattr(processor, "do_rescale", True) else 1.0
    if not getattr(processor, "do_normalize", True):
        return rescale, (0.0,) * 3, (1.0,) * 3, []
    mean, std = processor.image_mean, processor.image_std
    notes = []
    if getattr(processor, "do_center_crop", False):
        notes.append(f"{path.name} was made for cropped images: here the whole image is scaled to a square")
    return rescale, tuple(map(float, mean)), tuple(map(float, std)), notes
