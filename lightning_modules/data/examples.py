"""Labelled examples for a classifier that is there already: to certify it, or to train one for that.

A `Dataset` is a list of environments to train on; here the examples are one list, of which a part, every k-th or the
first few may be enough, and nothing is asked of environments or of how many examples a class has.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lightning_modules.data import archives, class_folders
from lightning_modules.data.archives import Part, fingerprint, no_part, select
from lightning_modules.data.catalog import BUILT_IN as DATASETS
from lightning_modules.data.catalog import load_dataset
from lightning_modules.data.digits import load_digits
from lightning_modules.data.environments import Dataset
from lightning_modules.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("train", "test", "all")
"""Parts of labelled data; "all" is train, then test."""

_FIXED = 0
"""Seed of the built-in data's splits; another value would be other data."""


@dataclass(frozen=True)
class Examples:
    """Labelled examples, checked.

    Args:
        identity: name and part, and where these do not fix the content "@" and a fingerprint of it; the same wherever the
            data lie, and whichever of the part's examples were taken.
        inputs: [n, ...] float32, or uint8 pixels, 0 to 255, which stand for 0 to 1.
        labels: [n] int64 indices into classes.
        classes: names in label order.
        input_range: smallest and largest value that an input may have, in the units a classifier sees; None: unbounded.
        indices: [n] int64, each example's position in the whole part.
    """

    identity: str
    inputs: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    input_range: tuple[float, float] | None
    indices: np.ndarray

    def __len__(self) -> int:
        """Count the examples."""
        return len(self.labels)


def load_examples(
    spec: str,
    part: Literal["train", "test", "all"] = "test",
    *,
    every: int = 1,
    limit: int | None = None,
    image_size: int | None = None,
    input_range: tuple[float, float] | None = None,
    num_classes: int | None = None,
) -> Examples:
    """Load labelled examples and check them.

    Data that know no parts are one whole: "test" and "all" give all of it, under the same identity, and "train" is
    refused, so that nobody certifies a classifier on what it was trained on without having said so.

    Args:
        spec: one of `BUILT_IN`; a dataset of the catalog (NAME:key=value,...), its environments pooled in order; or a path:
            a feature table (.parquet, .arrow, .feather, .npz; pooled, in the file's order, `split` "in" is train and "out"
            test); an npz file with `inputs` and `labels`; a folder with CIFAR-10's files; a folder ROOT/class/image.png,
            see `class_folders.read_class_folders`, or one whose folders train and val (or test) are such; or a folder
            ROOT/environment/class/image.png, see `load_folder`. A name wins over a path; write ./NAME for a file of that
            name.
        part: "train", "test", or "all".
        every: takes the examples 0, every, 2 * every, ... of the part.
        limit: takes at most that many of these.
        image_size: side of the images of a folder, in pixels (default 224, with environments 64); without effect on
            everything else.
        input_range: smallest and largest value that an input may have. The default is 0 to 1 for pixels and for float
            images [n, C, H, W], unbounded for all else.
        num_classes: number of the classifier's classes. Needed where the data do not name all of them: integer labels
            of an npz file, or of a table some of whose classes have no example.

    Raises:
        InputError: naming the file and the first bad row, if nothing has that name, the data cannot be read, there are no
            rows, inputs are NaN, infinite or outside the range, labels or the number of classes do not fit, or an option is
            out of its range.

    Example:
        >>> load_examples("MNIST", every=20).inputs.shape
        (50, 1, 28, 28)
    """
    _check_options(part, every, limit, image_size, input_range, num_classes)
    found = _find(spec, part, image_size, num_classes)
    if not len(found.labels):
        raise InputError(f"{spec}: part {part!r} has no rows; fill it")
    labels, classes = _check_labels(spec, found, num_classes)
    rows = np.arange(len(labels))[::every][:limit]
    inputs = found.read(rows)
    if input_range is None and (inputs.dtype == np.uint8 or inputs.ndim == 4):
        input_range = (0.0, 1.0)
    _check_values(spec, inputs, rows, input_range)
    # "@" parts the name from the fingerprint.
    name = f"{found.name.replace('@', '_')}-{'all' if found.whole else part}"
    identity = f"{name}@{found.fingerprint[:8]}" if found.fingerprint else name
    return Examples(identity, inputs, labels[rows], classes, input_range, rows)


def as_tensor(inputs: np.ndarray, rows: slice | np.ndarray = slice(None)) -> Tensor:
    """Copy some inputs into a float32 tensor [m, ...]; pixels (uint8) are scaled to [0, 1].

    Args:
        inputs: [n, ...] as in `Examples`.
        rows: which, in any order.
    """
    import torch

    from lightning_modules.networks import as_floats

    return as_floats(torch.from_numpy(np.array(inputs[rows])))


def _check_options(
    part: str,
    every: int,
    limit: int | None,
    image_size: int | None,
    input_range: tuple[float, float] | None,
    num_classes: int | None,
) -> None:
    if part not in PARTS:
        raise InputError(f"part: {part!r} is not one of {', '.join(PARTS)}")
    if every < 1:
        raise InputError(f"every: {every} is below 1; give 1 to take every example")
    if limit is not None and limit < 1:
        raise InputError(f"limit: {limit} is below 1; leave it out to take every example")
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size: {image_size} is not positive; 224 is usual")
    if num_classes is not None and num_classes < 2:
        raise InputError(f"num_classes: {num_classes} is below 2; a classifier tells at least two classes apart")
    if input_range is not None and not (all(map(math.isfinite, input_range)) and input_range[0] < input_range[1]):
        low, high = input_range
        raise InputError(f"input_range: {low:g} to {high:g} is no range; give the smaller value first, as in 0, 1")


def _find(spec: str, part: str, image_size: int | None, num_classes: int | None) -> Part:
    """Find out what the spec is and load its part."""
    if spec in BUILT_IN:
        return _built_in(spec, part)
    path = Path(spec)
    if spec.partition(":")[0] in DATASETS:
        return _pooled(spec, part, load_dataset(spec))
    if spec and path.is_dir():
        folder = archives.cifar10_folder(path)
        if folder is not None:
            return archives.read_cifar10(folder, part)
        folders = class_folders.class_folders(path, part)
        if folders is not None:
            return _parted(
                spec, part, class_folders.read_class_folders(path, folders, image_size or class_folders.IMAGE_SIZE)
            )
        return _pooled(spec, part, load_dataset(spec, image_size or 64))
    if path.is_file():
        if path.suffix.lower() == ".npz" and not archives.is_table(path):
            return _parted(spec, part, archives.read_npz(path))
        return _table(path, part, num_classes)
    known = {name.lower(): name for name in (*BUILT_IN, *DATASETS)}
    close = difflib.get_close_matches(spec.partition(":")[0].lower(), known, n=1)
    meant = f"did you mean {known[close[0]]!r}? Built in are" if close else "built in are"
    raise InputError(
        f"unknown data {spec!r}: {meant} {', '.join(known.values())}; the path of a folder of images or of CIFAR-10, of "
        "a table (.parquet, .arrow, .feather, .npz) or of an npz file also serves, but nothing lies at that path"
    )


def _parted(spec: str, part: str, found: Part) -> Part:
    """Refuse the train part of what is one whole."""
    if found.whole and part == "train":
        raise no_part(spec, part, "take part 'all' where training on everything is meant")
    return found


def _pooled(spec: str, part: str, dataset: Dataset) -> Part:
    ends = np.cumsum([len(environment) for environment in dataset.environments])

    def read(rows: np.ndarray) -> np.ndarray:
        owner = np.searchsorted(ends, rows, side="right")
        chosen = [
            environment.inputs[rows[owner == i] - (ends[i] - len(environment))]
            for i, environment in enumerate(dataset.environments)
        ]
        return np.concatenate(chosen)

    labels = np.concatenate([environment.labels for environment in dataset.environments])
    name, _, content = dataset.identity.partition("@")
    return _parted(spec, part, Part(name, content, labels, dataset.classes, read, whole=True))


def _table(path: Path, part: str, num_classes: int | None) -> Part:
    from lightning_modules.data.tables import load_rows

    features, labels, names, out = load_rows(path)
    classes: tuple[str, ...] | None = tuple(names)
    if num_classes is not None and num_classes > len(names):
        # Some class has no example: only if the labels are numbers do they still tell which class is which.
        if not all(name.isdecimal() for name in names):
            raise InputError(
                f"{path}: column 'label' names {len(names)} classes, num_classes is {num_classes}; write the labels as "
                "integers from 0, or add an example of each class"
            )
        labels, classes = np.array([int(name) for name in names])[labels], None
    if out is not None and part != "all":
        kept = out if part == "test" else ~out
        features, labels = features[kept], labels[kept]
    found = Part(path.stem, fingerprint(features, labels), labels, classes, select(features), whole=out is None)
    return _parted(str(path), part, found)


def _check_labels(spec: str, found: Part, num_classes: int | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Fit the labels to the classes: labels [n] int64, and all classes' names."""
    labels, classes = found.labels, found.classes
    if classes is not None and num_classes not in (None, len(classes)):
        raise InputError(
            f"{spec}: has {len(classes)} classes, num_classes is {num_classes}; take data and a classifier of the same "
            "classes"
        )
    count = len(classes) if classes is not None else num_classes
    bad = (labels < 0) if count is None else (labels < 0) | (labels >= count)
    if bad.any():
        row = int(bad.argmax())
        among = "negative" if labels[row] < 0 or count is None else f"not below the number of classes, {count}"
        raise InputError(f"{spec}: label {labels[row]} of row {row} is {among}; number the classes from 0")
    if classes is None:
        classes = tuple(map(str, range(int(labels.max()) + 1 if count is None else count)))
    return labels.astype(np.int64), classes


def _check_values(spec: str, inputs: np.ndarray, rows: np.ndarray, input_range: tuple[float, float] | None) -> None:
    """Look for NaN, infinite numbers and numbers outside the range; the first bad row is searched only if there is one."""
    scale = 255 if inputs.dtype == np.uint8 else 1
    low, high = (-math.inf, math.inf) if input_range is None else (scale * bound for bound in input_range)
    smallest, largest = inputs.min(), inputs.max()
    if np.isfinite(smallest) and np.isfinite(largest) and low <= smallest and largest <= high:
        return
    flat = inputs.reshape(len(inputs), -1)
    odd = ~np.isfinite(flat).all(axis=1)
    if odd.any():
        raise InputError(
            f"{spec}: {int(odd.sum())} rows have NaN or infinite inputs, first row {rows[odd.argmax()]}; clean or drop them"
        )
    outside = (flat < low) | (flat > high)
    first = int(outside.any(axis=1).argmax())
    value = flat[first, outside[first].argmax()] / scale
    raise InputError(
        f"{spec}: {value:g} in row {rows[first]} is outside the input range {low / scale:g} to {high / scale:g}; "
        "scale the inputs or give another input_range"
    )


# Built-in data


def _built_in(name: str, part: str) -> Part:
    """Take the part of a built-in's shuffled examples: the first four fifths are for training."""
    inputs, labels, classes = BUILT_IN[name]()
    order, border = _order(len(labels))
    chosen = {"train": order[:border], "test": order[border:], "all": order}[part]
    return Part(name, "", labels[chosen], classes, select(inputs[chosen]))


def _order(count: int) -> tuple[np.ndarray, int]:
    """The order of a built-in's examples and how many are for training; both fixed things."""
    return np.random.default_rng(_FIXED).permutation(count), count * 4 // 5


def _mnist() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    images, labels = load_digits()
    return images[:, None], labels, tuple(map(str, range(10)))


def _mnist_1_or_7() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    images, labels = load_digits()
    rows = np.flatnonzero((labels == 1) | (labels == 7))
    return images[rows, None], (labels[rows] == 7).astype(np.int64), ("1", "7")


def _digits() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    rows = np.loadtxt(_scikit_learn("digits.csv.gz"), delimiter=",", dtype=np.float32)
    return rows[:, :-1].reshape(-1, 1, 8, 8) / 16, rows[:, -1].astype(np.int64), tuple(map(str, range(10)))


def _breast_cancer() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    rows = np.loadtxt(_scikit_learn("breast_cancer.csv"), delimiter=",", skiprows=1)
    order, border = _order(len(rows))
    train = rows[order[:border], :-1]
    values = (rows[:, :-1] - train.mean(axis=0)) / train.std(axis=0)
    return values.astype(np.float32), rows[:, -1].astype(np.int64), ("malignant", "benign")


def _scikit_learn(name: str) -> Path:
    """Find a file that scikit-learn carries; it is read in place, since importing scikit-learn takes seconds."""
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        file = Path(folder, "datasets", "data", name)
        if file.is_file():
            return file
    raise InputError(f"the built-in {name} comes with scikit-learn, which is not installed: pip install scikit-learn")


BUILT_IN: dict[str, Callable[[], tuple[np.ndarray, np.ndarray, tuple[str, ...]]]] = {
    "MNIST": _mnist,
    "MNIST17": _mnist_1_or_7,
    "Digits": _digits,
    "BreastCancer": _breast_cancer,
}
"""Labelled data that need no file, by name, shuffled and split 4 to 1 once and for all: 5,000 digits of MNIST
[n, 1, 28, 28] and those of them that are 1 or 7, pixels; scikit-learn's digits [n, 1, 8, 8] in [0, 1]; and its breast cancer
table [n, 30], standardised by the training part."""
