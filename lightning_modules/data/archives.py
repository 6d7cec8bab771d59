"""Labelled examples in archives: CIFAR-10 as its authors publish it, and npz files of arrays.

Nothing in such a file is executed: pickles are read by an unpickler that can build nothing but their plain data.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_modules.errors import InputError

_CIFAR_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_CIFAR_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class Part:
    """One part of labelled data, of which only some may be wanted.

    Args:
        name: what the data are called, without where they lie.
        fingerprint: hexadecimal digest of the content; empty where the name fixes it.
        labels: [n] integers.
        classes: names in label order; None where only the labels tell how many classes there are.
        read: takes sorted positions [m] in 0..n-1, returns their inputs [m, ...].
        whole: whether the data know no parts, so that this is all of them.
    """

    name: str
    fingerprint: str
    labels: np.ndarray
    classes: tuple[str, ...] | None
    read: Callable[[np.ndarray], np.ndarray]
    whole: bool = False


def select(inputs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Make the function that takes rows of an array; the array itself where all are taken."""
    return lambda rows: inputs if len(rows) == len(inputs) else inputs[rows]


def fingerprint(*arrays: np.ndarray) -> str:
    """Digest the shapes, types and content of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def no_part(where: str | os.PathLike[str], part: str, mend: str) -> InputError:
    """The error for data without a part of that name."""
    return InputError(f"{where}: has no part {part!r}; {mend}")


# npz files


def is_table(path: Path) -> bool:
    """Tell a feature table from an npz file of inputs."""
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except (OSError, zipfile.BadZipFile):  # said in full where it is read
        return False
    return "features.npy" in names and "inputs.npy" not in names


def read_npz(path: Path) -> Part:
    """Read `inputs` [n, ...] and `labels` [n], and `classes` where there are names; all of it, since it has no parts.

    Raises:
        InputError: naming the file and the array, for a file that cannot be read, an array that is missing, of a wrong
            shape or type, or holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: _array(path, file, name) for name in ("inputs", "labels", "classes") if name in file.files}
            present = ", ".join(map(repr, file.files)) or "none"
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, "an npz file", error, "write it anew with numpy.savez") from error
    for name in ("inputs", "labels"):
        if name not in arrays:
            raise InputError(
                f"{path}: has no array {name!r}, only {present}; write inputs and labels, or a feature table"
            )
    inputs, labels = arrays["inputs"], arrays["labels"]
    if inputs.dtype != np.uint8 and inputs.dtype.kind != "f":
        raise InputError(f"{path}: inputs are {inputs.dtype}; store pixels as uint8 (0 to 255), all else as float32")
    if inputs.ndim < 2 or 0 in inputs.shape[1:]:
        raise InputError(f"{path}: inputs have shape {list(inputs.shape)}, not [n, ...]; give each example its numbers")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise InputError(f"{path}: labels are {labels.dtype} {list(labels.shape)}; make them integers [n]")
    if len(inputs) != len(labels):
        raise InputError(f"{path}: {len(inputs)} inputs but {len(labels)} labels; give one label an example")
    if inputs.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what is too large for float32 turns infinite and is found as such
            inputs = inputs.astype(np.float32, copy=False)
    names = arrays.get("classes")
    if names is not None and (names.ndim != 1 or names.dtype.kind not in "Uiu"):
        raise InputError(f"{path}: classes are {names.dtype} {list(names.shape)}; make them strings, one a class")
    classes = None if names is None else tuple(map(str, names.tolist()))
    digest = fingerprint(inputs, labels.astype(np.int64), *([] if names is None else [names]))
    return Part(path.stem, digest, labels, classes, select(inputs), whole=True)


def _array(path: Path, file: Any, name: str) -> np.ndarray:
    try:
        array: np.ndarray = file[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise InputError(f"{path}: {name} hold Python objects; make them numbers, all rows equally long") from error
    return array


# CIFAR-10


def cifar10_folder(root: Path) -> Path | None:
    """Find CIFAR-10's files in a folder or in the folder that its archive unpacks to; None if they are not there."""
    for folder in (root, root / "cifar-10-batches-py", root / "cifar-10-batches-bin"):
        names = ("test_batch", *_CIFAR_TRAIN)
        if any((folder / f"{name}{suffix}").is_file() for name in names for suffix in ("", ".bin")):
            return folder
    return None


def read_cifar10(folder: Path, part: str) -> Part:
    """Read CIFAR-10 in its Python or its binary version: [n, 3, 32, 32] uint8.

    Args:
        folder: holds test_batch and data_batch_1 to data_batch_5, or the same with .bin; and batches.meta or
            batches.meta.txt, without which the classes are called "0" to "9".
        part: "train", "test", or "all" (train, then test).

    Raises:
        InputError: naming the file, if one is missing, damaged or holds anything but plain data.
    """
    binary = not any((folder / name).is_file() for name in ("test_batch", *_CIFAR_TRAIN))
    wanted = {"train": _CIFAR_TRAIN, "test": ("test_batch",), "all": (*_CIFAR_TRAIN, "test_batch")}[part]
    batches = [(_binary_batch if binary else _pickled_batch)(folder / f"{n}{'.bin' * binary}") for n in wanted]
    pixels = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in batches])
    classes = _cifar_classes(folder, binary)
    return Part("CIFAR10", fingerprint(pixels, labels), labels, classes, select(pixels))


def _binary_batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    content = _content(file)
    if not content or len(content) % (1 + _CIFAR_BYTES):
        raise InputError(f"{file}: has {len(content)} bytes, not a multiple of {1 + _CIFAR_BYTES}; unpack it anew")
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + _CIFAR_BYTES)
    return rows[:, 1:], _cifar_labels(file, rows[:, 0].tolist())


def _pickled_batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    batch = _unpickle(file)
    pixels, labels = (batch.get(name) for name in ("data", "labels")) if isinstance(batch, dict) else (None, None)
    pixels = pixels.array if isinstance(pixels, _PickledArray) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != _CIFAR_BYTES or not isinstance(labels, list):
        raise InputError(f"{file}: holds no 'data' [n, {_CIFAR_BYTES}] of bytes and 'labels'; unpack CIFAR-10 anew")
    if len(pixels) != len(labels) or not labels:
        raise InputError(f"{file}: {len(pixels)} images but {len(labels)} labels; unpack CIFAR-10 anew")
    return pixels, _cifar_labels(file, labels)


def _cifar_labels(file: Path, labels: list[Any]) -> np.ndarray:
    for row, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label <= 9:
            raise InputError(f"{file}: label {str(label)[:40]} of row {row} is outside 0..9; unpack CIFAR-10 anew")
    return np.array(labels, dtype=np.int64)


def _cifar_classes(folder: Path, binary: bool) -> tuple[str, ...]:
    file = folder / ("batches.meta.txt" if binary else "batches.meta")
    if not file.is_file():
        return tuple(map(str, range(10)))
    if binary:
        names: Any = _content(file).decode("utf-8", "replace").split()
    else:
        about = _unpickle(file)
        names = about.get("label_names") if isinstance(about, dict) else None
    if not isinstance(names, list) or len(names) != 10 or not all(isinstance(name, str) for name in names):
        raise InputError(f"{file}: does not name ten classes; unpack it anew or remove it")
    return tuple(names)


class _PickledType:
    """Stands in for numpy.dtype: remembers which one was meant."""

    def __init__(self, *given: Any) -> None:
        self.name = str(given[0]) if given else ""

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment, which bytes do not have."""


class _PickledArray:
    """Stands in for an array of bytes, the only kind that CIFAR-10 holds."""

    def __init__(self, *_: Any) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _PickledType) or kind.name not in ("u1", "uint8"):
            raise pickle.UnpicklingError("an array that is not of uint8")
        content = content.encode("latin1") if isinstance(content, str) else content
        self.array = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, strings, bytes, lists, dicts and arrays of bytes, and no other object.

    Not even numpy's own functions are called: what a pickle names is looked up in this table of stand-ins.
    """

    _stand_ins = {
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy", "ndarray"): None,  # only ever an argument
        ("numpy", "dtype"): _PickledType,
        ("_codecs", "encode"): _encode,  # how Python 3 writes bytes for Python 2
    }

    def find_class(self, module: str, name: str) -> Any:
        """Give the stand-in.

        Raises:
            pickle.UnpicklingError: there is none.
        """
        if (module, name) not in self._stand_ins:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and such an object may run code")
        return self._stand_ins[module, name]


_BAD_PICKLE = (
    pickle.UnpicklingError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    MemoryError,
    OverflowError,
)
"""What damaged bytes can lead to; whatever they name, only the stand-ins above are called."""


def _unpickle(file: Path) -> Any:
    """Read a pickle of plain data; strings of Python 2, which wrote CIFAR-10, are taken as text."""
    content = _content(file)
    try:
        return _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except _BAD_PICKLE as error:
        raise _unreadable(file, "a pickle of plain data", error, "unpack CIFAR-10 anew") from error


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); unpack CIFAR-10 anew") from error


def _unreadable(path: Path, kind: str, error: BaseException, mend: str) -> InputError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"{path}: cannot be read as {kind} ({reason}); {mend}")
