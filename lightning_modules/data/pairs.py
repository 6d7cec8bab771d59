"""Tables of pairs: what an image encoder and a text encoder make of the same captioned images.

Columns: `image_features` and `text_features` (fixed-size lists of float32), `caption`, and optionally `image`, `label`,
`environment` and `split` ("in" or "out"). Files: Parquet, Arrow IPC (file or stream), or npz.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_modules.data.columns import read_columns
from lightning_modules.errors import InputError

FEATURES = ("image_features", "text_features")
"""Columns of features of a table of pairs."""

OPTIONAL = ("image", "label", "environment", "split")
"""Columns that a table of pairs need not have."""


@dataclass(frozen=True)
class Pairs:
    """Features of n images and their captions.

    Args:
        identity: the file's stem, "@" and a fingerprint of its bytes.
        image_features: [n, d_v] float32.
        text_features: [n, d_u] float32.
        captions: [n] strings.
        columns: [n] strings each, those of "image", "label", "environment" and "split" that there are.
    """

    identity: str
    image_features: np.ndarray
    text_features: np.ndarray
    captions: list[str]
    columns: dict[str, list[str]]


def read_pairs(path: str | os.PathLike[str]) -> Pairs:
    """Read a table of pairs, as `shiftlab featurize --text_encoder` writes it.

    Args:
        path: .parquet, .arrow, .feather (file or stream format) or .npz.

    Raises:
        InputError: naming the file, the column and the first bad row: a file that cannot be read, a missing column, a
            column of another type, nulls, NaN or infinite or ragged features, a split other than "in" and "out".
    """
    features, strings = read_columns(path, FEATURES, ("caption",), OPTIONAL)
    for row, split in enumerate(strings.get("split", ())):
        if split not in ("in", "out"):
            raise InputError(f"{path}: column 'split': {split!r} at row {row} is neither 'in' nor 'out'")
    with open(path, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    identity = f"{Path(path).stem.replace('@', '_')}@{digest[:8]}"
    captions = strings.pop("caption")
    return Pairs(identity, features["image_features"], features["text_features"], captions, strings)
