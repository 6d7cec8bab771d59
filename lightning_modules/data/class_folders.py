"""Folders of images for a classifier that is there already: ROOT/class/image.png, as ImageNet's validation set.

The images keep their aspect ratio and are cut to a square, as classifiers of photographs are evaluated; `folder.py` reads
the folders that methods are trained on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_modules.data.archives import Part, no_part
from lightning_modules.data.folder import SUFFIXES, list_folder, open_image, read_file
from lightning_modules.errors import InputError

IMAGE_SIZE = 224
"""Side of the images of a class folder, in pixels, where none is asked for: what ImageNet's classifiers see."""

_RESIZED = 256 / 224  # the shorter side before cropping, in units of the side after it

_PARTS = {"train": ("train",), "test": ("test", "val", "validation")}
"""Folders that a folder of images may be divided into, by the part they are; of the test folders the first counts."""


def class_folders(root: Path, part: str) -> list[Path] | None:
    """Say which folders hold a folder of images a class: ROOT itself, or its train, val or test folder.

    Args:
        root: ROOT.
        part: "train", "test" or "all"; without effect where ROOT itself holds the classes.

    Returns:
        None where the layout is another: ROOT/environment/class/image.png.

    Raises:
        InputError: images stand at two depths, nothing is there, or ROOT has no folder of that part.
    """
    deep, flat = _depths(root)
    if flat and deep:
        raise InputError(
            f"{root}: {flat[0]} holds images but {deep[0]} holds folders; make all of them ROOT/class/image.png"
        )
    if flat:
        return [root]
    if not deep:
        raise InputError(
            f"{root}: holds neither images (ROOT/class/image.png) nor CIFAR-10's files; point to the folder that does"
        )
    known = [name for names in _PARTS.values() for name in names]
    if any(name not in known for name in deep):
        return None
    parts = _PARTS if part == "all" else {part: _PARTS[part]}
    found = [next((name for name in names if name in deep), None) for names in parts.values()]
    chosen = [root / name for name in found if name is not None]
    if not chosen:
        raise no_part(root, part, f"it holds {', '.join(deep)}")
    return chosen


def _depths(root: Path) -> tuple[list[str], list[str]]:
    """Name the folders in ROOT that hold folders, and those that hold images."""
    deep, flat = [], []
    for entry in list_folder(root):
        if entry.is_dir():
            inside = list_folder(entry)
            if any(file.is_dir() for file in inside):
                deep.append(entry.name)
            if any(_is_image(file) for file in inside):
                flat.append(entry.name)
    return deep, flat


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(SUFFIXES) and entry.is_file()


def read_class_folders(root: Path, folders: Sequence[Path], image_size: int) -> Part:
    """Find the images ROOT/class/image.{png,jpg,jpeg} (any case); they are decoded when they are asked for.

    Classes are the folders' names in sorted order, images sorted by class and file name. A class may have no image. The
    fingerprint is of the files' names and sizes and the bytes of three of them, so that thousands of images need not be
    read to certify a few.

    Args:
        root: names the data.
        folders: ROOT, or the folders in it that make up the part.
        image_size: side of the square that is cut out of an image's middle once its shorter side is scaled
            (bilinearly) to image_size * 256 / 224.

    Raises:
        InputError: the folders have different classes.
    """
    names = [tuple(entry.name for entry in list_folder(folder) if entry.is_dir()) for folder in folders]
    for folder, other in zip(folders[1:], names[1:], strict=True):
        if other != names[0]:
            odd = sorted(set(other) ^ set(names[0]))[0]
            raise InputError(f"{folder}: class {odd!r} is not in both it and {folders[0].name}; make an empty folder")
    found: list[tuple[Path, int, int]] = []
    for folder in folders:
        for label, name in enumerate(names[0]):
            found += [
                (folder / name / e.name, label, e.stat().st_size) for e in list_folder(folder / name) if _is_image(e)
            ]
    digest = hashlib.sha256(f"{image_size}".encode())
    for file, _, size in found:
        digest.update(os.fsencode(f"{file.relative_to(root)}\0{size}\0"))
    for file, *_ in (found[0], found[len(found) // 2], found[-1]) if found else ():
        digest.update(read_file(file))

    def read(rows: np.ndarray) -> np.ndarray:
        # Pillow decodes outside the interpreter's lock. More threads than cores hide the latency of a network disk.
        pixels = np.empty((len(rows), 3, image_size, image_size), dtype=np.uint8)
        with ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as pool:
            for i, image in enumerate(pool.map(lambda row: crop_image(found[row][0], image_size), rows.tolist())):
                pixels[i] = image
        return pixels

    labels = np.array([label for _, label, _ in found], dtype=np.int64)
    return Part(
        os.path.abspath(root).rsplit(os.sep, 1)[-1], digest.hexdigest(), labels, names[0], read, list(folders) == [root]
    )


def crop_image(file: Path, size: int) -> np.ndarray:
    """Read an image, scale its shorter side to size * 256 / 224 and cut out the middle: [3, size, size] uint8.

    The same pixels as torchvision's Resize and CenterCrop, for whole numbers of pixels round as they do.

    Raises:
        InputError: naming the file, if it is no image or is damaged.
    """

    def fit(image: Image.Image) -> Image.Image:
        shorter, (width, height) = round(size * _RESIZED), image.size
        if width <= height:
            width, height = shorter, int(shorter * height / width)
        else:
            width, height = int(shorter * width / height), shorter
        left, top = round((width - size) / 2), round((height - size) / 2)
        return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))

    return open_image(file, read_file(file), None, fit)
