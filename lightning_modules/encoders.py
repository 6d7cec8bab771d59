"""Pretrained image encoders from a local directory, as Hugging Face's `save_pretrained` writes them.

Nothing is downloaded and no code of the directory runs: the architecture must be one that transformers knows, and
weights are read as tensors alone. `transformers` is an optional dependency, imported when an encoder is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.data.folder import decode_image
from lightning_modules.errors import InputError

POOLINGS = ("auto", "pooler", "cls", "mean")
"""How an encoder's output becomes one vector an image, see `load_encoder`."""

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLS = ("cls_token", "class_embedding")


@dataclass(frozen=True)
class Encoder:
    """A frozen image encoder; call it on pixels to get features.

    Args:
        model: transformers' vision model, in eval mode.
        pooling: "pooler", "cls" or "mean".
        image_size: side of its images in pixels.
        rescale: pixels are multiplied by this, then normalised by
        mean: of each channel, and
        std: of each channel.
        prefix: tokens before those of the patches (CLS, registers).
        dimension: d, numbers in a feature vector; 0 while it is not known.
        name: the directory's name.
        config_sha256: of config.json.
        sha256: of all files that features depend on: config, preprocessing and weights.
        notes: what a person should know, a sentence each.
    """

    model: nn.Module
    pooling: str
    image_size: int
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    prefix: int
    dimension: int
    name: str
    config_sha256: str
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> Encoder:
        """Move the weights; returns the same encoder."""
        self.model.to(device)
        return self

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Compute features [B, d] float32 of pixels [B, 3, image_size, image_size] uint8."""
        return _pool(self.outputs(pixels), self.pooling, self.prefix)

    @torch.inference_mode()
    def outputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """Run the model: `last_hidden_state` and, where the model has one, `pooler_output`."""
        mean_311, std_311 = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (self.mean, self.std))
        values = (pixels.to(self.device).float() * self.rescale - mean_311) / std_311
        return dict(self.model(pixel_values=values).items())


def check_encoder(path: str | os.PathLike[str], pooling: str) -> dict[str, Any]:
    """Check what can be checked without loading anything; returns the encoder's config.

    Raises:
        InputError: an unknown pooling; no such directory; no config.json in it, or one that is no JSON object.
    """
    if pooling not in POOLINGS:
        raise InputError(f"pooling: unknown {pooling!r}; choose one of {', '.join(POOLINGS)}")
    if not Path(path).is_dir():
        raise InputError(f"encoder: {path}: no such directory; give one that `save_pretrained` wrote")
    try:
        config = json.loads((Path(path) / "config.json").read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"encoder: {path}: has no config.json; give a directory that `save_pretrained` wrote"
        ) from None
    except ValueError as error:
        raise InputError(f"encoder: {path}/config.json is no JSON ({error}); copy it anew") from error
    if not isinstance(config, dict):
        raise InputError(f"encoder: {path}/config.json holds no settings; copy it anew")
    return config


def load_encoder(path: str | os.PathLike[str], pooling: str = "auto", image_size: int = 224) -> Encoder:
    """Load an encoder from a directory with config.json and weights (safetensors, or tensors of a PyTorch file).

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
    model, missing = _load(path, config)
    if model.main_input_name != "pixel_values":
        tower = getattr(model, "vision_model", None)
        if tower is None:
            raise InputError(f"encoder: {path}: {type(model).__name__} takes no images; give an image encoder")
        model, missing = tower, {k.removeprefix("vision_model.") for k in missing if k.startswith("vision_model.")}
    untrained_pooler = any("pooler" in key.split(".") for key in missing)
    missing = {key for key in missing if "pooler" not in key.split(".")}
    if missing:
        raise InputError(
            f"encoder: {path}: its weights lack {len(missing)} tensors of {type(model).__name__}, e.g. "
            f"{min(missing)}; save the whole model"
        )
    rescale, mean, std, notes = _normalisation(path)
    config_sha256, sha256 = _hashes(path)
    model = model.eval().requires_grad_(False)
    encoder = Encoder(
        model, pooling, image_size, rescale, mean, std, _prefix(model), 0, path.name, config_sha256, sha256
    )
    try:
        outputs = encoder.outputs(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8))
    except (ValueError, RuntimeError) as error:
        size = config.get("image_size", config.get("vision_config", {}).get("image_size"))
        mend = f"give --image_size {size}" if size and size != image_size else "give another"
        raise InputError(
            f"image_size: {path.name} cannot encode images of {image_size} pixels ({_line(error)}); {mend}"
        ) from error
    if outputs.get("last_hidden_state") is None:
        raise InputError(f"encoder: {path}: {type(model).__name__} gives no features; give an image encoder")
    has_pooler = outputs.get("pooler_output") is not None and not untrained_pooler
    has_cls = any(name.split(".")[-1] in _CLS for name, _ in model.named_parameters())
    if pooling == "auto":
        pooling = "pooler" if has_pooler else "cls" if has_cls else "mean"
        if untrained_pooler:
            notes.append(f"the pooler of {path.name} has no trained weights: taking {pooling} instead")
    elif (pooling == "pooler" and not has_pooler) or (pooling == "cls" and not has_cls):
        what = {"cls": "CLS token", "pooler": "trained pooler" if untrained_pooler else "pooler"}[pooling]
        raise InputError(f"pooling: {path.name} ({type(model).__name__}) has no {what}; choose auto or mean")
    dimension = _pool(outputs, pooling, encoder.prefix).shape[1]
    return Encoder(**{**vars(encoder), "pooling": pooling, "dimension": dimension, "notes": tuple(notes)})


def encode_files(encoder: Encoder, files: Sequence[Path], batch_size: int = 64, threads: int = 2) -> np.ndarray:
    """Decode image files and encode them; while one batch is encoded the next is decoded.

    Args:
        encoder: where its weights are, it runs.
        files: paths of n images.
        batch_size: images encoded at once; features depend on it no more than on the order of floating-point sums.
        threads: that decode.

    Returns:
        Features [n, d] float32.

    Raises:
        InputError: naming a file that cannot be read as an image, or whose features are NaN or infinite.
    """
    features = np.empty((len(files), encoder.dimension), dtype=np.float32)
    with ThreadPoolExecutor(threads) as pool:

        def decode(start: int) -> list[Future[tuple[np.ndarray, bytes]]]:
            chosen = files[start : start + batch_size]
            return [pool.submit(decode_image, file, encoder.image_size) for file in chosen]

        ahead = decode(0)
        for start in range(0, len(files), batch_size):
            batch, ahead = ahead, decode(start + batch_size)
            try:
                pixels = torch.from_numpy(np.stack([image.result()[0] for image in batch]))
            except InputError:
                pool.shutdown(cancel_futures=True)
                raise
            features[start : start + batch_size] = encoder(pixels).cpu().numpy()
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise InputError(f"{files[int(bad.argmax())]}: the encoder turns it into NaN or infinite features; check both")
    return features


def _pool(outputs: dict[str, Tensor], pooling: str, prefix: int) -> Tensor:
    """Turn outputs into [B, d]: tokens come as [B, tokens, d], the pixels of convolutional networks as [B, d, h, w]."""
    if pooling == "pooler":
        return outputs["pooler_output"].flatten(1)
    states = outputs["last_hidden_state"]
    if pooling == "cls":
        return states[:, 0]
    return states[:, prefix:].mean(1) if states.ndim == 3 else states.flatten(2).mean(2)


def _prefix(model: nn.Module) -> int:
    """Count the tokens before the patches."""
    count = 0
    for name, parameter in model.named_parameters():
        kind = name.split(".")[-1]
        if kind in (*_CLS, "distillation_token"):
            count += 1
        elif kind == "register_tokens":
            count += parameter.shape[-2]
    return count


def _load(path: Path, config: dict[str, Any]) -> tuple[Any, set[str]]:
    """Load the model that config.json names; also the names of weights that the files lack."""
    try:
        from safetensors import SafetensorError
        from transformers import AutoModel
    except ImportError as error:
        raise InputError(f"encoder: needs transformers ({error}); run: pip install 'shiftlab[encoders]'") from error
    try:
        with _quiet():
            model, loading = AutoModel.from_pretrained(
                path,
                local_files_only=True,
                trust_remote_code=False,
                weights_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, EOFError) as error:
        if "auto_map" in config:
            what = "brings code of its own, which is not run; give an encoder that transformers itself knows"
            raise InputError(f"encoder: {path}: {what}") from error
        raise InputError(f"encoder: {path}: cannot be loaded ({_line(error)})") from error
    except (SafetensorError, pickle.UnpicklingError) as error:
        raise InputError(f"encoder: {path}: its weights cannot be read ({_line(error)}); copy them anew") from error
    return model, set(loading["missing_keys"])


def _normalisation(path: Path) -> tuple[float, tuple[float, ...], tuple[float, ...], list[str]]:
    """Read factor, mean and standard deviation from preprocessor_config.json; notes where that leaves something open."""
    if not (path / "preprocessor_config.json").is_file():
        note = f"{path.name} has no preprocessor_config.json: images are normalised by ImageNet's mean and deviation"
        return 1 / 255, _IMAGENET_MEAN, _IMAGENET_STD, [note]
    import transformers

    processors: Any = transformers.AutoImageProcessor  # untyped
    try:
        with _quiet():
            processor = processors.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"encoder: {path}/preprocessor_config.json cannot be read ({_line(error)})") from error
    rescale = float(processor.rescale_factor) if getattr(processor, "do_rescale", True) else 1.0
    if not getattr(processor, "do_normalize", True):
        return rescale, (0.0,) * 3, (1.0,) * 3, []
    mean, std = processor.image_mean, processor.image_std
    notes = []
    if getattr(processor, "do_center_crop", False):
        notes.append(f"{path.name} was made for cropped images: here the whole image is scaled to a square")
    return rescale, tuple(map(float, mean)), tuple(map(float, std)), notes


def _hashes(path: Path) -> tuple[str, str]:
    """SHA-256 of config.json, and of all files that features depend on."""
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    files = [path / "config.json", path / "preprocessor_config.json", *weights]
    digests = []
    for file in files:
        if file.is_file():
            with open(file, "rb") as handle:
                digests.append((file.name, hashlib.file_digest(handle, "sha256").hexdigest()))
    return digests[0][1], hashlib.sha256(json.dumps(digests).encode()).hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and reports off stderr: what matters of them becomes an error or a note."""
    import transformers

    logging: Any = transformers.utils.logging  # untyped
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
