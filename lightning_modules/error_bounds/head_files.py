"""Reads the last layer of a classifier from a file, whoever wrote it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from lightning_modules.error_bounds.evidence import Array, LinearHead
from lightning_modules.errors import InputError
from lightning_modules.state_dicts import find_state_dict, load_tensors

_NAMES = ("classifier", "fc", "head", "linear", "output")


def read_head(path: str, width: int | None = None) -> LinearHead:
    """Read a last layer: weight [K, d] and bias [K].

    Args:
        path: an npz file with `weight` and `bias`; or a state dict (.pt, .pth, .safetensors) or a checkpoint (.ckpt) of a
            linear layer or of a whole network, whose last layer is taken: "weight", or one called classifier, fc, head,
            linear or output, or the only one of the width.
        width: number of features that it takes, where known.

    Raises:
        InputError: naming the file and the mend.
    """
    if not Path(path).is_file():
        raise InputError(f"head: {path}: no such file; give an npz with weight and bias, a state dict or a checkpoint")
    if path.lower().endswith(".npz"):
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise InputError(f"head: {path}: cannot be read as npz ({' '.join(str(error).split())[:200]})") from error
    else:
        weights = find_state_dict(load_tensors(Path(path).read_bytes(), path), path)
        arrays = {name: value.float().numpy() for name, value in weights.items() if hasattr(value, "numpy")}
    weight, bias = _last_layer(path, arrays, width)
    return LinearHead(np.asarray(weight, np.float32), np.asarray(bias, np.float32))


def _last_layer(path: str, arrays: dict[str, Any], width: int | None) -> tuple[Array, Array]:
    """Find weight [K, d] and bias [K] (zero where there is none)."""
    layers = {
        name.removesuffix("weight").rstrip("."): value
        for name, value in arrays.items()
        if name.rpartition(".")[2] == "weight" and value.ndim == 2
    }
    fitting = {name: value for name, value in layers.items() if width in (None, value.shape[1])}
    named = [name for name in fitting if name == "" or name.rpartition(".")[2] in _NAMES]
    chosen = named if len(named) == 1 else list(fitting)
    if len(chosen) != 1:
        found = ", ".join(f"{name or 'weight'} {list(value.shape)}" for name, value in layers.items()) or "none"
        wanted = "" if width is None else f" of {width} features"
        what = "no linear layer" if not chosen else "several linear layers"
        raise InputError(
            f"head: {path}: has {what}{wanted} that could be the last; it has {found}: save that layer alone"
        )
    prefix = f"{chosen[0]}." if chosen[0] else ""
    weight = layers[chosen[0]]
    return weight, arrays.get(f"{prefix}bias", np.zeros(len(weight), np.float32))
