"""One way to open any encoder, by the name that a person gives."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_modules.data.columns import ARROW, NPZ, PARQUET
from lightning_modules.encoders.adapter import FrozenEncoder, Kind
from lightning_modules.encoders.arrays import ArrayEncoder
from lightning_modules.encoders.efficientnet import efficientnet_lite0
from lightning_modules.encoders.hub import check_encoder
from lightning_modules.encoders.hub_images import load_encoder
from lightning_modules.encoders.hub_texts import load_text_encoder
from lightning_modules.encoders.minilm import minilm
from lightning_modules.errors import InputError

BUILT_IN: dict[str, Kind] = {"efficientnet-lite0": "image", "minilm": "text"}
"""Encoders whose weights lie inside packages (extra `alignment`), and what they encode."""

_KEYS = {"image": "image", "text": "caption"}


def open_encoder(
    name: str | os.PathLike[str], kind: Kind, pooling: str = "auto", image_size: int | None = None
) -> FrozenEncoder | ArrayEncoder:
    """Open an encoder.

    Args:
        name: "efficientnet-lite0" or "minilm"; a directory of a Hugging Face model; or a table of features (.parquet,
            .arrow, .feather, .npz) with a column features and one of what they are of, image or caption.
        kind: what is to be encoded, "image" or "text".
        pooling: see `load_encoder` and `load_text_encoder`; those built in have one alone.
        image_size: side of the images in pixels; None: 128 for efficientnet-lite0, 224 for a directory.

    Raises:
        InputError: nothing of that name, or it encodes something else; a package is not installed; what opening it raises.
    """
    name = os.fspath(name)
    if kind not in _KEYS:
        raise InputError(f"kind: {kind!r} is neither 'image' nor 'text'; choose one")
    if name in BUILT_IN:
        if BUILT_IN[name] != kind:
            other = next(known for known, encodes in BUILT_IN.items() if encodes == kind)
            raise InputError(f"encoder: {name} encodes {BUILT_IN[name]}s, not {kind}s; give {other} or a directory")
        if pooling not in ("auto", "mean"):
            raise InputError(f"pooling: {name} has no {pooling!r}; choose auto or mean")
        return minilm() if kind == "text" else efficientnet_lite0(128 if image_size is None else image_size)
    if name.lower().endswith(PARQUET + ARROW + NPZ):
        return ArrayEncoder.from_table(name, key=_KEYS[kind])
    if not Path(name).exists() and os.sep not in name:
        raise InputError(f"encoder: {name}: no such directory; give one, or {' or '.join(BUILT_IN)}")
    check_encoder(name, pooling)
    return load_text_encoder(name, pooling) if kind == "text" else load_encoder(name, pooling, image_size or 224)
