"""What an encoder is to the rest: a name, a dimension, a hash, and items in, one row of numbers each out."""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.errors import InputError

Kind = Literal["image", "text"]
"""What an encoder's items are."""

_GPU_BATCH = 64


@runtime_checkable
class Encoder(Protocol):
    """A frozen function of images, texts or anything else: each item becomes one vector, whatever stands beside it."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def dimension(self) -> int:
        """Numbers in a feature vector, d."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of all that features depend on but the items: weights and preprocessing, in hexadecimal."""
        ...

    def encode(self, items: Sequence[Any]) -> np.ndarray:
        """Compute features [n, d] float32 of n items.

        Raises:
            InputError: naming an item that cannot be read, or whose features are not finite.
        """
        ...


class FrozenEncoder(abc.ABC):
    """A network without gradients, in eval mode, as an `Encoder`.

    Args:
        model: its weights get no gradient any more.
        name: what people call it.
        dimension: d, numbers in a feature vector.
        sha256: of weights and preprocessing.
        settings: what a feature table says of its preprocessing.
        packages: whose versions a feature table names.
        notes: what a person should know, a sentence each.
    """

    kind: ClassVar[Kind]
    cpu_batch: ClassVar[int]
    """Items encoded at once on a CPU, where nothing else is asked for."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        dimension: int,
        sha256: str,
        settings: Mapping[str, Any],
        packages: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name, self.dimension, self.sha256 = name, dimension, sha256
        self.settings, self.packages, self.notes = dict(settings), tuple(packages), tuple(notes)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> Self:
        """Move the weights; returns the same encoder."""
        self.model.to(device)
        return self

    def about(self) -> dict[str, Any]:
        """Name, hash and preprocessing, for the metadata of a feature table."""
        return {"encoder": self.name, "encoder_sha256": self.sha256, **self.settings}

    @abc.abstractmethod
    def encode(self, items: Sequence[Any], batch_size: int | None = None, threads: int = 1) -> np.ndarray:
        """Compute features [n, d] float32 of n items.

        Args:
            items: images or texts.
            batch_size: items encoded at once; features depend on it no more than on the order of floating-point sums.
                None: what is fast where the weights are.
            threads: that prepare items.

        Raises:
            InputError: naming an item that cannot be read, or whose features are not finite; the model is in train mode.
        """

    def _batch(self, batch_size: int | None) -> int:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size: {batch_size} is too small; give 1 or more")
        return batch_size or (self.cpu_batch if self.device.type == "cpu" else _GPU_BATCH)

    def _check_eval(self) -> None:
        # Dropout would draw anew for each batch, and batch statistics mix an item with its neighbours.
        if any(module.training for module in self.model.modules()):
            raise InputError(f"encoder: {self.name} is in train mode, which is not frozen; call eval() on its model")


def check_finite(features: np.ndarray, items: Sequence[Any]) -> np.ndarray:
    """Return the features [n, d] of n items.

    Raises:
        InputError: naming the first item whose features are NaN or infinite.
    """
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"{item_name(items[row], row)}: the encoder turns it into NaN or infinite features; check both"
        )
    return features


def item_name(item: Any, row: int) -> str:
    """What errors call an item: a file's path, the beginning of a text, or its place."""
    if isinstance(item, Path):
        return str(item)
    if isinstance(item, str):
        return f"item {row} ({item[:60]!r})"
    return f"item {row}"


def digest(*parts: Any) -> str:
    """SHA-256, in hexadecimal, of values that JSON can write."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256, in hexadecimal, of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def to_numpy(features: Tensor) -> np.ndarray:
    """Bring features to the CPU as float32."""
    return features.float().cpu().numpy()
