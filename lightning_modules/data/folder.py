"""A dataset from a folder of images: ROOT/environment/class/image.png."""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from lightning_modules.data.environments import Dataset, Environment, check_dataset
from lightning_modules.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Image files by their lower-case suffix."""


def load_folder(path: str | os.PathLike[str], image_size: int = 64) -> Dataset:
    """Load ROOT/environment/class/image.{png,jpg,jpeg} (any case) as RGB images of one size.

    Environments and classes are the folders' names in sorted order; the classes are those of all environments taken
    together. Hidden files and folders are left out without a word; other files that are no such images are left out and
    counted in the dataset's `notes["skipped"]`.

    Args:
        path: ROOT.
        image_size: images are scaled (bilinearly, without keeping the aspect ratio) to image_size x image_size pixels.

    Returns:
        Inputs [n, 3, image_size, image_size] uint8. The identity is ROOT's name, "@" and a fingerprint of the images'
        relative paths and bytes and of image_size: moving ROOT keeps it, changing, adding or renaming a file does not.

    Raises:
        InputError: no such folder; no images; fewer than two environments; an environment without examples of a class;
            an image that cannot be read.
    """
    root = Path(os.path.abspath(path))
    if image_size < 1:
        raise InputError(f"image_size: {image_size} is not positive; 64 is usual")
    if not root.is_dir():
        raise InputError(f"{path}: no such folder; give one with the layout ROOT/environment/class/image.png")
    files, classes, skipped = _scan(root)
    if not any(files.values()):
        raise InputError(f"{path}: found no images; the layout is ROOT/environment/class/image.png (or .jpg, .jpeg)")

    shape = (3, image_size, image_size)
    index = {name: i for i, name in enumerate(classes)}
    layout = Dataset(
        root.name.replace("@", "_"),
        tuple(
            Environment(
                name,
                np.broadcast_to(np.uint8(0), (len(images), *shape)),  # takes no memory: stands in for the pixels
                np.array([index[file.parent.name] for file in images], dtype=np.int64),
            )
            for name, images in files.items()
        ),
        tuple(classes),
        "cnn",
        300,
        {"skipped": f"{len(skipped)} files that are no images, e.g. {skipped[0]}"} if skipped else {},
    )
    check_dataset(layout)  # before the long work of decoding

    digest = hashlib.sha256(str(image_size).encode())
    environments = []
    # Pillow decodes outside the interpreter's lock. More threads than cores hide the latency of a network disk.
    with ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as pool:
        for environment, images in zip(layout.environments, files.values(), strict=True):
            inputs = np.empty(environment.inputs.shape, dtype=np.uint8)
            decoded = pool.map(lambda file: _decode(file, image_size), images)
            for row, (file, (pixels, content)) in enumerate(zip(images, decoded, strict=True)):
                inputs[row] = pixels
                name = os.fsencode(file.relative_to(root).as_posix())
                digest.update(b"%d %b %b" % (len(name), name, content))
            environments.append(replace(environment, inputs=inputs))
    return replace(layout, identity=f"{layout.identity}@{digest.hexdigest()[:8]}", environments=tuple(environments))


def _scan(root: Path) -> tuple[dict[str, list[Path]], list[str], list[str]]:
    """List the images of each environment, the classes of all, and what stands where only those should."""
    files: dict[str, list[Path]] = {}
    classes: set[str] = set()
    skipped: list[Path] = []
    for environment in _visible(root):
        if not environment.is_dir():
            skipped.append(environment)
            continue
        files[environment.name] = []
        for folder in _visible(environment):
            if not folder.is_dir():
                skipped.append(folder)
                continue
            classes.add(folder.name)
            for file in _visible(folder):
                is_image = file.suffix.lower() in SUFFIXES and file.is_file()
                (files[environment.name] if is_image else skipped).append(file)
    return files, sorted(classes), [file.relative_to(root).as_posix() for file in skipped]


def _visible(folder: Path) -> list[Path]:
    """List a folder in sorted name order, without hidden entries."""
    return sorted((e for e in folder.iterdir() if not e.name.startswith(".")), key=lambda e: e.name)


def _decode(file: Path, size: int) -> tuple[np.ndarray, bytes]:
    """Read an image as [3, size, size] uint8, and the digest of its bytes."""
    try:
        content = file.read_bytes()
        with Image.open(io.BytesIO(content)) as opened:
            opened.draft("RGB", (2 * size, 2 * size))  # lets a JPEG decode at a fraction of its size, twice as fast
            image: Image.Image = opened
            if image.mode.startswith("I;16"):  # convert() would cut 16-bit grey off at 255: nearly all white
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises on bad bytes
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(f"{file}: cannot be read as an image ({reason}); replace or remove it") from error
    return pixels.transpose(2, 0, 1), hashlib.sha256(content).digest()
