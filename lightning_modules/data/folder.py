"""A dataset from a folder of images: ROOT/environment/class/image.png, decoded once a machine.

The layout is that of PACS, VLCS, OfficeHome, TerraIncognita and DomainNet as they unpack. The resized pixels of a folder
are kept in a cache folder as one npy file, which later loads, of any process, map into memory instead of decoding.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from lightning_modules.data.environments import Dataset, Environment, check_dataset
from lightning_modules.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Image files by their lower-case suffix."""

Progress = Callable[[int, int], None]
"""Called with the number of images decoded and the number of all."""

_CACHE_VERSION = 1
_REPORT_SECONDS = 2.0
_AHEAD = 4096


@dataclass(frozen=True)
class ImageList:
    """The images below a folder ROOT/environment/class (or of a list of files), found but not decoded.

    Args:
        root: ROOT, absolute.
        files: [n] paths relative to root; of a folder by environment, class and name, each sorted.
        environments: names of all environments, also of those without images.
        environment: [n] index into environments.
        classes: names of the classes of all environments.
        labels: [n] index into classes.
        sizes: [n] bytes.
        mtimes: [n] time of the last change in nanoseconds.
        skipped: other files and folders where only those should be.
    """

    root: Path
    files: tuple[str, ...]
    environments: tuple[str, ...]
    environment: np.ndarray
    classes: tuple[str, ...]
    labels: np.ndarray
    sizes: np.ndarray
    mtimes: np.ndarray
    skipped: tuple[str, ...]

    def key(self, image_size: int, rows: slice = slice(None)) -> str:
        """Fingerprint the files (some of them) by path, size and time of change; of the content three are read.

        Those three tell datasets apart whose archives set all times to one.
        """
        files = self.files[rows]
        digest = hashlib.sha256(f"{_CACHE_VERSION} {image_size}".encode())
        digest.update(self.sizes[rows].tobytes() + self.mtimes[rows].tobytes())
        digest.update(b"\0".join(os.fsencode(file) for file in files))
        for file in (files[0], files[len(files) // 2], files[-1]):
            digest.update(read_file(self.root / file))
        return digest.hexdigest()[:32]


def scan_folder(path: str | os.PathLike[str]) -> ImageList:
    """Find the images ROOT/environment/class/image.{png,jpg,jpeg} (any case); hidden files and folders do not count.

    Args:
        path: ROOT.

    Raises:
        InputError: no such folder, or no images in it.
    """
    root = Path(os.path.abspath(path))
    if not root.is_dir():
        raise InputError(f"{path}: no such folder; give one with the layout ROOT/environment/class/image.png")
    environments: list[str] = []
    classes: list[str] = []
    files: list[tuple[str, int, str, os.stat_result]] = []
    skipped: list[str] = []
    for environment in _visible(root, skipped, ""):
        environments.append(environment.name)
        for folder in _visible(environment, skipped, f"{environment.name}/"):
            classes.append(folder.name)
            where = f"{environment.name}/{folder.name}"
            for file in list_folder(folder):
                if file.name.lower().endswith(SUFFIXES) and file.is_file():
                    about = file.stat()
                    files.append((f"{where}/{file.name}", len(environments) - 1, folder.name, about))
                else:
                    skipped.append(f"{where}/{file.name}")
    if not files:
        raise InputError(f"{path}: found no images; the layout is ROOT/environment/class/image.png (or .jpg, .jpeg)")
    names = tuple(sorted(set(classes)))
    index = {name: i for i, name in enumerate(names)}
    return ImageList(
        root,
        tuple(file for file, *_ in files),
        tuple(environments),
        np.array([e for _, e, *_ in files], dtype=np.int64),
        names,
        np.array([index[label] for _, _, label, _ in files], dtype=np.int64),
        np.array([about.st_size for *_, about in files], dtype=np.int64),
        np.array([about.st_mtime_ns for *_, about in files], dtype=np.int64),
        tuple(skipped),
    )


def print_progress(done: int, total: int) -> None:
    """Say on stderr how many images are decoded: one line that changes on a terminal, a new line elsewhere."""
    live = sys.stderr.isatty()
    end = "" if live and done < total else "\n"
    print(f"{chr(13) if live else ''}decoded {done} of {total} images", end=end, file=sys.stderr, flush=True)


def load_folder(
    path: str | os.PathLike[str], image_size: int = 64, progress: Progress | None = print_progress
) -> Dataset:
    """Load ROOT/environment/class/image.{png,jpg,jpeg} (any case) as RGB images of one size.

    Environments and classes are the folders' names in sorted order; the classes are those of all environments taken
    together. Hidden files and folders are left out without a word; other files that are no such images are left out and
    counted in the dataset's `notes["skipped"]`.

    The pixels are decoded once and kept in the cache folder ($SHIFTLAB_CACHE, else $XDG_CACHE_HOME/shiftlab, else
    ~/.cache/shiftlab); later loads map them into memory. An entry serves as long as no image's path, size or time of
    change differs: after a change that keeps all three, delete the entry. Where the folder cannot be written, images
    are decoded into memory and `notes["cache"]` says why.

    Args:
        path: ROOT.
        image_size: images are scaled (bilinearly, without keeping the aspect ratio) to image_size x image_size pixels.
        progress: called now and then once decoding takes longer than 2 seconds, and then at its end; None for silence.

    Returns:
        Inputs [n, 3, image_size, image_size] uint8, read-only where they are mapped. The identity is ROOT's name, "@"
        and a fingerprint of the images' relative paths and bytes and of image_size: moving ROOT keeps it, changing,
        adding or renaming a file does not.

    Raises:
        InputError: no such folder; no images; fewer than two environments; an environment without examples of a class;
            an image that cannot be read; files that change while they are read.
    """
    if image_size < 1:
        raise InputError(f"image_size: {image_size} is not positive; 64 is usual")
    found = scan_folder(path)
    shape = (len(found.files), 3, image_size, image_size)
    name = found.root.name.replace("@", "_")
    notes = {}
    if found.skipped:
        notes["skipped"] = f"{len(found.skipped)} files that are no images, e.g. {found.skipped[0]}"

    def dataset(identity: str, pixels: np.ndarray) -> Dataset:
        ends = np.cumsum(np.bincount(found.environment, minlength=len(found.environments)))
        environments = tuple(
            Environment(name, pixels[start:end], found.labels[start:end])
            for name, start, end in zip(found.environments, [0, *ends], ends, strict=False)
        )
        return Dataset(identity, environments, found.classes, "cnn", 300, notes)

    # Before the long work of decoding. What stands in for the pixels takes no memory.
    check_dataset(dataset(name, np.broadcast_to(np.uint8(0), shape)))
    try:
        cache, key = cache_folder() / "images", found.key(image_size)
        pixels, fingerprint = _open(cache, key, shape) or _build(cache, key, found, shape, progress)
    except OSError as error:  # of the cache: an image that cannot be read is an InputError
        reason = " ".join(str(error).split())
        notes["cache"] = f"not kept ({reason}); set SHIFTLAB_CACHE to a folder that can be written"
        pixels = np.empty(shape, dtype=np.uint8)
        fingerprint = _decode_all(found, pixels, progress)
    return dataset(f"{name}@{fingerprint[:8]}", pixels)


def cache_folder() -> Path:
    """Where decoded images are kept: $SHIFTLAB_CACHE, else $XDG_CACHE_HOME/shiftlab, else ~/.cache/shiftlab.

    Raises:
        OSError: none of these is set and the user has no home.
    """
    chosen, general = os.environ.get("SHIFTLAB_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(chosen or f"{general}/shiftlab").expanduser().absolute()
    except RuntimeError as error:  # a container's user without a name
        raise OSError(str(error)) from error


def decode_image(file: Path, size: int) -> tuple[np.ndarray, bytes]:
    """Read an image as [3, size, size] uint8, and the SHA-256 of its bytes.

    Raises:
        InputError: naming the file, if it is no image or is damaged.
    """
    content = read_file(file)
    image = open_image(file, content, (2 * size, 2 * size), lambda i: i.resize((size, size), Image.Resampling.BILINEAR))
    return image, hashlib.sha256(content).digest()


def open_image(
    file: Path, content: bytes, draft: tuple[int, int] | None, fit: Callable[[Image.Image], Image.Image]
) -> np.ndarray:
    """Decode an image of any mode as RGB and fit it to a size: [3, height, width] uint8.

    Args:
        file: what the image is called in errors.
        content: its bytes.
        draft: lets a JPEG decode at a fraction of its size, at least this one, twice as fast; None for its own.
        fit: scales or cuts the image.

    Raises:
        InputError: naming the file, if it is no image or is damaged.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            if draft is not None:
                opened.draft("RGB", draft)
            image: Image.Image = opened
            if image.mode.startswith("I;16"):  # convert() would cut 16-bit grey off at 255: nearly all white
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            pixels = np.asarray(fit(image.convert("RGB")))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises on bad bytes
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(f"{file}: cannot be read as an image ({reason}); replace or remove it") from error
    return pixels.transpose(2, 0, 1)


def read_file(file: Path) -> bytes:
    """Read an image's bytes, or raise InputError naming it."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read as an image ({error.strerror}); replace or remove it") from error


def list_folder(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """List a folder in sorted name order, without hidden entries."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _visible(folder: str | os.PathLike[str], skipped: list[str], where: str) -> Iterator[os.DirEntry[str]]:
    """Yield the folders in a folder, and note what else is there."""
    for entry in list_folder(folder):
        if entry.is_dir():
            yield entry
        else:
            skipped.append(f"{where}{entry.name}")


def _decode_all(found: ImageList, pixels: np.ndarray, progress: Progress | None) -> str:
    """Decode all images into pixels [n, 3, size, size]; returns the fingerprint of names and content."""
    size, total = pixels.shape[-1], len(found.files)
    newest = int(found.mtimes.max()) / 1e9
    # A change within the same tick of the file system's clock would go unseen: let the tick (at most 10 ms) pass.
    time.sleep(min(max(newest + 0.01 - time.time(), 0), 0.01))
    digest = hashlib.sha256(str(size).encode())

    def decode(row: int) -> bytes:
        pixels[row], content = decode_image(found.root / found.files[row], size)
        return content

    began, due, reported = time.monotonic(), _REPORT_SECONDS, False
    # Pillow decodes outside the interpreter's lock. More threads than cores hide the latency of a network disk.
    with ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as pool:
        for start in range(0, total, _AHEAD):  # map() queues all it is given at once
            rows = range(start, min(start + _AHEAD, total))
            for row, content in zip(rows, pool.map(decode, rows), strict=True):
                name = os.fsencode(found.files[row])
                digest.update(b"%d %b %b" % (len(name), name, content))
                elapsed = time.monotonic() - began
                if progress is not None and elapsed >= due and row + 1 < total:
                    progress(row + 1, total)
                    due, reported = elapsed + max(_REPORT_SECONDS, elapsed / 10), True
    if progress is not None and reported:
        progress(total, total)
    if scan_folder(found.root).key(size) != found.key(size):
        raise InputError(f"{found.root}: files changed while they were read; load it again once nothing writes there")
    return digest.hexdigest()


def _header(shape: tuple[int, ...]) -> bytes:
    """The start of an npy file of uint8."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _open(cache: Path, key: str, shape: tuple[int, ...]) -> tuple[np.ndarray, str] | None:
    """Map an entry: pixels and fingerprint; None where there is none or it is damaged."""
    header = _header(shape)
    try:
        fingerprint = json.loads((cache / f"{key}.json").read_bytes())["fingerprint"]
        with open(cache / f"{key}.npy", "rb") as file:
            whole = os.fstat(file.fileno()).st_size == len(header) + math.prod(shape)
            if not whole or file.read(len(header)) != header or not isinstance(fingerprint, str):
                return None
            mapped = np.memmap(file, np.uint8, "r", len(header), shape)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # As a plain array: pickle copies a memmap into its stream, but passes an array's memory on as it is.
    return np.asarray(mapped), fingerprint


def _build(
    cache: Path, key: str, found: ImageList, shape: tuple[int, ...], progress: Progress | None
) -> tuple[np.ndarray, str]:
    """Decode into a new entry and map it; of several processes one does it while the others wait.

    Raises:
        OSError: the cache cannot be written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / f"{key}.lock"):
        stored = _open(cache, key, shape)
        if stored is not None:  # another process made it meanwhile
            return stored
        for leftover in cache.glob(f"{key}.*.tmp"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        temporary = cache / f"{key}.{uuid.uuid4().hex[:8]}.tmp"
        header = _header(shape)
        try:
            with open(temporary, "wb+") as file:
                file.write(header)
                file.flush()
                if hasattr(os, "posix_fallocate"):  # writing to a map on a full disk would kill the process
                    os.posix_fallocate(file.fileno(), 0, len(header) + math.prod(shape))
                pixels = np.memmap(file, np.uint8, "r+", len(header), shape)
                fingerprint = _decode_all(found, pixels, progress)
                pixels.flush()
                os.fsync(file.fileno())
            os.replace(temporary, cache / f"{key}.npy")
            about = {"fingerprint": fingerprint, "source": str(found.root), "image_size": str(shape[-1])}
            temporary.write_text(json.dumps(about))
            os.replace(temporary, cache / f"{key}.json")  # last: what has no such file is no entry
        finally:
            temporary.unlink(missing_ok=True)
        _remove_outdated(cache, key, about)
    stored = _open(cache, key, shape)
    if stored is None:
        raise OSError(f"{key}.npy cannot be read back")
    return stored


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Wait until no other process of this machine holds the lock."""
    with open(path, "wb") as handle:
        # Some network file systems have no locks: then the work may be done twice, and the last to end wins.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _remove_outdated(cache: Path, key: str, about: dict[str, str]) -> None:
    """Remove the entries of earlier states of the same folder; who has them mapped keeps them."""
    for sidecar in cache.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a damaged one, or another process was faster
            other = json.loads(sidecar.read_bytes())
            if sidecar.stem != key and all(other.get(k) == about[k] for k in ("source", "image_size")):
                sidecar.unlink()
                sidecar.with_suffix(".npy").unlink()
