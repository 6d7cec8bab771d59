"""Images with captions: a table of them, folders of classes with templates, or drawn icons with their names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from lightning_modules.data.class_folders import class_folders
from lightning_modules.data.folder import SUFFIXES, ImageList, list_folder, scan_folder
from lightning_modules.data.icons import is_icons, read_icons
from lightning_modules.errors import InputError

TABLES = ("captions.csv", "captions.parquet")
"""What the table of captions is called in a folder of images."""

TEMPLATES = ("a photo of a {}",)
"""Captions of images that have a class alone; {} is the class."""

_OPTIONAL = ("label", "environment", "split")


@dataclass(frozen=True)
class CaptionedImages:
    """Images found but not decoded, each with a caption.

    Args:
        images: the n files. Its environments and classes are those of `columns`, or one without a name.
        captions: [n], none of them empty.
        columns: what else is known of each image: "label", "environment", "split" ("in" or "out"); [n] each.
    """

    images: ImageList
    captions: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]

    @property
    def files(self) -> list[Path]:
        """Paths of the n images."""
        return [self.images.root / file for file in self.images.files]


def read_captioned(path: str | os.PathLike[str], templates: Sequence[str] = TEMPLATES) -> CaptionedImages:
    """Find captioned images.

    Args:
        path: one of
            a folder with captions.csv or captions.parquet for all of its images, or such a table of any name, for some: columns image (relative to the
            table) and caption, one row an image, and if wanted label, environment and split ("in" or "out");
            folders of classes, ROOT/class/image.png, also in ROOT/train and ROOT/val (split "in" and "out") or in
            ROOT/environment: captions are made of templates and the folders' names;
            icons, see `read_icons`: captions are their names, labels their categories, environments their styles.
        templates: for folders of classes: the k-th image of a class takes the k-th template, and so on in turn.

    Raises:
        InputError: naming file and row, for captions or images that are missing, an empty caption, an image in two rows,
            a split of another name; a template without {}; nothing that looks like one of the layouts.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return _read_table(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give images with captions")
    tables = [path / name for name in TABLES if (path / name).is_file()]
    if len(tables) > 1:
        raise InputError(f"{path}: has both {' and '.join(TABLES)}; keep one")
    if tables:
        return _every_image(_read_table(tables[0]), tables[0])
    if is_icons(path):
        icons = read_icons(path)
        files = [file for images in icons.images.values() for file in images]
        columns = {
            "label": icons.categories * len(icons.images),
            "environment": tuple(style for style in icons.images for _ in icons.names),
        }
        return _captioned(path, files, icons.names * len(icons.images), columns)
    flat = sum(entry.is_file() and entry.name.lower().endswith(SUFFIXES) for entry in list_folder(path))
    if flat:
        mend = f"write {TABLES[0]} (columns image, caption), or sort the images into folders of their class"
        raise InputError(f"{path}: holds {flat} images without captions; {mend}")
    return _read_classes(path, templates)


def check_templates(templates: Sequence[str]) -> None:
    """Check templates of captions.

    Raises:
        InputError: there is none, or one has no {} or several.
    """
    if not templates:
        raise InputError("templates: there is none; give one such as 'a photo of a {}'")
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(f"templates: {template!r} does not hold {{}} once; write it where the class goes")


def _read_table(path: Path) -> CaptionedImages:
    table = _load(path)
    for name in ("image", "caption"):
        if name not in table.column_names:
            raise InputError(f"{path}: column {name!r} is missing; it has {', '.join(map(repr, table.column_names))}")
    if not len(table):
        raise InputError(f"{path}: has no rows; fill it")
    columns = {}
    for name in ("image", "caption", *(name for name in _OPTIONAL if name in table.column_names)):
        try:
            columns[name] = table[name].cast(pa.string()).to_pylist()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise InputError(f"{path}: column {name!r}: is {table[name].type}; make it strings") from None
        for row, value in enumerate(columns[name]):
            if value is None or not value.strip():
                raise InputError(f"{path}: row {row}: {name} is empty; fill it or drop the row")
    for row, split in enumerate(columns.get("split", [])):
        if split not in ("in", "out"):
            raise InputError(f"{path}: row {row}: split {split!r} is neither 'in' nor 'out'; write one of them")
    root = path.absolute().parent
    seen: dict[str, int] = {}
    for row, image in enumerate(columns["image"]):
        first = seen.setdefault(os.path.normpath(image), row)
        if first != row:
            raise InputError(f"{path}: row {row}: {image} stands in row {first} already; keep one row an image")
        if not (root / image).is_file():
            raise InputError(f"{path}: row {row}: {image}: no such image; mend the path, relative to the table")
    files, captions = columns.pop("image"), columns.pop("caption")
    given = {name: tuple(values) for name, values in columns.items()}
    return _captioned(root, [root / file for file in files], tuple(captions), given)


def _every_image(found: CaptionedImages, table: Path) -> CaptionedImages:
    """Return what was found, if no image of the table's folder goes without a caption."""
    known = set(found.images.files)
    folder = found.images.root
    below = (Path(at, name).relative_to(folder) for at, _, names in os.walk(folder) for name in names)
    lacking = sorted(str(file) for file in below if file.name.lower().endswith(SUFFIXES) and str(file) not in known)
    if lacking:
        images = "1 image" if len(lacking) == 1 else f"{len(lacking)} images"
        mend = "write captions for them, or give the table itself instead of its folder to leave them out"
        raise InputError(f"{table}: captions are missing for {images} of the folder, e.g. {lacking[0]}; {mend}")
    return found


def _load(path: Path) -> pa.Table:
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise InputError(f"{path}: is no folder and no table that ends in .csv or .parquet; give one")
    try:
        if suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                return file.read()
        # As strings: a caption "007" is no number, and an empty one no null.
        kinds = {name: pa.string() for name in ("image", "caption", *_OPTIONAL)}
        # Captions may hold line breaks within quotes.
        parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
        return pyarrow.csv.read_csv(
            path, parse_options=parse, convert_options=pyarrow.csv.ConvertOptions(column_types=kinds)
        )
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read as {suffix[1:]} ({reason}); write it anew") from error


def _read_classes(root: Path, templates: Sequence[str]) -> CaptionedImages:
    check_templates(templates)
    folders = class_folders(root, "all")
    if folders is None:
        found = scan_folder(root)
        files = [found.root / file for file in found.files]
        columns = {"environment": [found.environments[i] for i in found.environment]}
        labels = [found.classes[i] for i in found.labels]
    else:
        files, labels, splits = [], [], []
        for folder in folders:
            for label in (entry.name for entry in list_folder(folder) if entry.is_dir()):
                images = [e.name for e in list_folder(folder / label) if e.name.lower().endswith(SUFFIXES)]
                files += [folder / label / name for name in images]
                labels += [label] * len(images)
                splits += ["in" if folder.name == "train" else "out"] * len(images)
        columns = {} if folders == [root] else {"split": splits}
    counts = dict.fromkeys(labels, 0)
    captions = []
    for label in labels:
        captions.append(templates[counts[label] % len(templates)].replace("{}", label.replace("_", " ")))
        counts[label] += 1
    given = {"label": tuple(labels)} | {name: tuple(values) for name, values in columns.items()}
    return _captioned(root, files, tuple(captions), given)


def _captioned(
    root: Path, files: Sequence[Path], captions: tuple[str, ...], columns: dict[str, tuple[str, ...]]
) -> CaptionedImages:
    about = [os.stat(file) for file in files]
    environments, environment = _codes(columns.get("environment", ("",) * len(files)))
    classes, labels = _codes(columns.get("label", ("",) * len(files)))
    root = root.absolute()
    images = ImageList(
        root,
        tuple(os.path.relpath(file.absolute(), root) for file in files),
        environments,
        environment,
        classes,
        labels,
        np.array([entry.st_size for entry in about], dtype=np.int64),
        np.array([entry.st_mtime_ns for entry in about], dtype=np.int64),
        (),
    )
    return CaptionedImages(images, captions, columns)


def _codes(values: Iterable[str]) -> tuple[tuple[str, ...], np.ndarray]:
    names, codes = np.unique(list(values), return_inverse=True)
    return tuple(names.tolist()), codes.astype(np.int64)
