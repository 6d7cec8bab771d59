"""Images for `FullBatchModule`, all in one batch, with a signal planted in some of them where that is wanted."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules.dynamics.planting import MODES, plant_opposing_signal
from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import Choice
from lightning_modules.lightning_import import pl

_FIXED = 0


class FullBatchData(pl.LightningDataModule):
    """Labelled images of mean 0, in one batch or, with `batch_size`, in many.

    Args:
        source: what `load_examples` reads: "Digits" (scikit-learn's 1,797 of 64 pixels), "MNIST" (5,000 of 784), CIFAR-10's
            folder, a folder of images by class, an npz file.
        subset: images taken, the first of a fixed random order; 0: all.
        mode: of the planted signal: "opposing", "same" or "none" (see `plant_opposing_signal`).
        class_a: of the first group.
        class_b: of the second.
        m: images in each group.
        magnitude: of the signal.
        keep: factor of the images that it is added to.
        validation: share of the images that is held out, before anything is planted.
        batch_size: images in a step; 0: all.
        seed: of the planted images and of the order of batches.

    Raises:
        InputError: a value out of range, or what `plant_opposing_signal` refuses.
    """

    def __init__(
        self,
        source: str = "Digits",
        subset: int = 0,
        mode: Annotated[str, Choice(MODES)] = "none",
        class_a: int = 3,
        class_b: int = 8,
        m: int = 30,
        magnitude: float = 10.0,
        keep: float = 0.25,
        validation: float = 0.0,
        batch_size: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= validation < 1:
            raise InputError(f"validation: is {validation}; give 0 or more, and less than 1")
        for name, value in (("subset", subset), ("batch_size", batch_size)):
            if value < 0:
                raise InputError(f"{name}: is {value}; give 0 (all) or more")
        self._source, self._subset, self._validation = source, subset, validation
        self._size, self._seed, self._mode = batch_size, seed, mode
        self._planting: dict[str, Any] = {
            "class_a": class_a,
            "class_b": class_b,
            "m": m,
            "magnitude": magnitude,
            "keep": keep,
            "mode": mode,
            "seed": seed,
        }
        self.groups: dict[str, Tensor] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the images, hold some out, and plant the signal."""
        if hasattr(self, "train"):
            return
        from lightning_modules.data.examples import load_examples

        examples = load_examples(self._source, "all")
        order = np.random.default_rng(_FIXED).permutation(len(examples))
        order = order[: self._subset or None] if self._subset or self._validation else np.sort(order)
        x = np.asarray(examples.inputs)[order]
        x = x.astype(np.float32) / (255 if x.dtype == np.uint8 else 1)
        y = np.asarray(examples.labels)[order]
        held = int(self._validation * len(y))
        mean = x[held:].mean(0)
        x -= mean
        planted = plant_opposing_signal(x[held:], y[held:], **self._planting) if self._planted(y[held:]) else None
        if planted is not None:
            self.groups = {"planted A": torch.from_numpy(planted.a), "planted B": torch.from_numpy(planted.b)}
        self.train = _tensors(x[held:] if planted is None else planted.x, y[held:])
        self.held_out = _tensors(x[:held], y[:held])

    def _planted(self, y: np.ndarray) -> bool:
        """Whether there are groups: a person's own data need not have their classes where nothing is planted."""
        counts = [int((y == self._planting[name]).sum()) for name in ("class_a", "class_b")]
        return self._mode != "none" or min(counts) >= self._planting["m"]

    def train_dataloader(self) -> DataLoader[Any]:
        """All examples in one batch, or batches in a new order every pass."""
        generator = torch.Generator().manual_seed(self._seed)
        size = self._size or len(self.train)
        return DataLoader(_Rows(self.train), size, shuffle=bool(self._size), generator=generator, collate_fn=_same)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """What is held out."""
        held = len(self.held_out)
        return [DataLoader(_Rows(self.held_out), held, collate_fn=_same)] if held else []

    def probe_batches(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """The first `count` training examples, for probes."""
        x, y = self.train.tensors
        return [(x[:count], y[:count])]


class _Rows(TensorDataset):
    """Rows of a batch are taken at once."""

    def __init__(self, data: TensorDataset) -> None:
        super().__init__(*data.tensors)

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, ...]:
        if len(rows) == len(self) and rows == list(range(len(self))):
            return self.tensors  # a whole set in order needs no copy
        return tuple(tensor[rows] for tensor in self.tensors)


def _same(batch: Any) -> Any:
    return batch


def _tensors(x: np.ndarray, y: np.ndarray) -> TensorDataset:
    return TensorDataset(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64)))
