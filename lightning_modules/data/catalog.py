"""One way to load any dataset: a built-in by its name, a folder of images or a feature table by its path."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

from lightning_modules.data.environments import Dataset, check_dataset
from lightning_modules.errors import InputError

_SIMULATED = "lightning_modules.data.simulated"

BUILT_IN: dict[str, tuple[str, str]] = {
    "ColoredMNIST": ("lightning_modules.data.digits", "colored_mnist"),
    "RotatedMNIST": ("lightning_modules.data.digits", "rotated_mnist"),
    "NoisyColoredMNIST": ("lightning_modules.data.digits", "noisy_colored_mnist"),
    "ShiftedDigits": ("lightning_modules.data.shifted_digits", "training_digits"),
    "Flights": ("lightning_modules.data.flights", "flights"),
    "GaussianSEM": (f"{_SIMULATED}.gaussian_sem", "gaussian_sem"),
    "GaussianEnvironments": (f"{_SIMULATED}.gaussian_environments", "gaussian_environments"),
    "DomainAdjustedSEM": (f"{_SIMULATED}.domain_adjusted_sem", "domain_adjusted_sem"),
}
"""Datasets that need no file, by name: module and function, imported when asked for."""


def load_dataset(spec: str, image_size: int = 64) -> Dataset:
    """Load and check a dataset.

    Args:
        spec: a built-in's name, with values for its parameters if wanted (NAME:key=value,key=value); or the path of a
            folder ROOT/environment/class/image.png or of a feature table (.parquet, .arrow, .feather, .npz). A name
            wins over a path; write ./NAME for a folder of that name.
        image_size: side of the images of a folder, in pixels; without effect on everything else.

    Raises:
        InputError: nothing has that name and nothing lies at that path; or the data are not sound, see `load_folder`,
            `load_table` and `check_dataset`.

    Example:
        >>> load_dataset("ColoredMNIST").environment_names
        ('+90%', '+80%', '-90%')
        >>> len(load_dataset("GaussianSEM:environments=8,n=200").environments)
        9
    """
    name, _, values = spec.partition(":")
    if name in BUILT_IN:
        return check_dataset(_build(name, values))
    if spec and Path(spec).is_dir():
        from lightning_modules.data.folder import load_folder

        return load_folder(spec, image_size)
    if Path(spec).is_file():
        from lightning_modules.data.tables import load_table

        return load_table(spec)
    lower = {known.lower(): known for known in BUILT_IN}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    meant = f"did you mean {lower[close[0]]!r}? Built in are" if close else "built in are"
    raise InputError(
        f"unknown dataset {spec!r}: {meant} {', '.join(BUILT_IN)}; the path of a folder "
        "ROOT/environment/class/image.png or of a table (.parquet, .arrow, .feather, .npz) also serves, "
        "but nothing lies at that path"
    )


def _build(name: str, values: str) -> Dataset:
    """Call a built-in's function with the values of a spec."""
    module, function = BUILT_IN[name]
    make: Callable[..., Dataset] = getattr(importlib.import_module(module), function)
    parameters = inspect.signature(make).parameters
    given: dict[str, int | float | bool] = {}
    for part in filter(None, values.split(",")):
        key, _, text = part.partition("=")
        if key not in parameters:
            known = ", ".join(parameters) or "none"
            raise InputError(f"dataset {name}: has no parameter {key!r}; its parameters: {known}")
        given[key] = _value(name, key, text, parameters[key].default)
    return make(**given)


def _value(name: str, key: str, text: str, default: object) -> int | float | bool:
    """Read a parameter's value as the type of its default."""
    kind = type(default)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return int(text) if kind is int else float(text)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "an integer"}.get(kind, "a number")
        raise InputError(f"dataset {name}: {key} is {text!r}; give {wanted}") from None
