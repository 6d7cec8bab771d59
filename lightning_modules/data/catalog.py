"""One way to load any dataset: a built-in by its name, a folder of images or a feature table by its path."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from lightning_modules.data.digits import colored_mnist, rotated_mnist
from lightning_modules.data.environments import Dataset, check_dataset
from lightning_modules.errors import InputError

BUILT_IN: dict[str, Callable[[], Dataset]] = {"ColoredMNIST": colored_mnist, "RotatedMNIST": rotated_mnist}
"""Datasets that need no file, by name."""


def load_dataset(spec: str, image_size: int = 64) -> Dataset:
    """Load and check a dataset.

    Args:
        spec: a built-in's name, or the path of a folder ROOT/environment/class/image.png or of a feature table
            (.parquet, .arrow, .feather, .npz). A name wins over a path; write ./NAME for a folder of that name.
        image_size: side of the images of a folder, in pixels; without effect on everything else.

    Raises:
        InputError: nothing has that name and nothing lies at that path; or the data are not sound, see `load_folder`,
            `load_table` and `check_dataset`.

    Example:
        >>> load_dataset("ColoredMNIST").environment_names
        ('+90%', '+80%', '-90%')
    """
    if spec in BUILT_IN:
        return check_dataset(BUILT_IN[spec]())
    if spec and Path(spec).is_dir():
        from lightning_modules.data.folder import load_folder

        return load_folder(spec, image_size)
    if Path(spec).is_file():
        from lightning_modules.data.tables import load_table

        return load_table(spec)
    lower = {name.lower(): name for name in BUILT_IN}
    close = difflib.get_close_matches(spec.lower(), lower, n=1)
    meant = f"did you mean {lower[close[0]]!r}? Built in are" if close else "built in are"
    raise InputError(
        f"unknown dataset {spec!r}: {meant} {', '.join(BUILT_IN)}; the path of a folder "
        "ROOT/environment/class/image.png or of a table (.parquet, .arrow, .feather, .npz) also serves, "
        "but nothing lies at that path"
    )
