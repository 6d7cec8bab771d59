"""PairTensors of images and captions, as an encoder's features or as what a tower reads, and the batches they are trained in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_modules.alignment.retrieval import check_vectors
from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl


@dataclass(frozen=True)
class PairTensors:
    """n images with their captions; row i of one belongs to row i of the other.

    Args:
        images: [n, ...]: vectors of a frozen encoder, or pixels.
        texts: [n, ...]: vectors of a frozen encoder, or tokens.
        captions: [n] int64, equal where captions are equal.
    """

    images: Tensor
    texts: Tensor
    captions: Tensor

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.captions)

    def to(self, device: torch.device) -> PairTensors:
        """The same on a device."""
        return PairTensors(self.images.to(device), self.texts.to(device), self.captions.to(device))

    def take(self, rows: np.ndarray | Sequence[int] | Tensor) -> PairTensors:
        """Some of the pairs, in that order."""
        chosen = torch.as_tensor(np.asarray(rows), dtype=torch.int64)
        return PairTensors(self.images[chosen], self.texts[chosen], self.captions[chosen])

    def shuffled(self, seed: int) -> PairTensors:
        """The control: the same images and captions, dealt to each other at random."""
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(self)))
        return PairTensors(self.images, self.texts[order], self.captions[order])


def make_pairs(
    images: Tensor | np.ndarray, texts: Tensor | np.ndarray, captions: Sequence[str] | None = None
) -> PairTensors:
    """Put images and texts together, and check them.

    Args:
        images: [n, ...]; numbers [n, D] are vectors, which must have a direction.
        texts: [n, ...], likewise.
        captions: n texts that say which are equal; None: texts whose rows are equal are.

    Raises:
        InputError: unequal lengths, no pairs, an empty caption, vectors that are not finite or zero.
    """
    sides = {"images": torch.as_tensor(images), "texts": torch.as_tensor(texts)}
    counts = {name: len(side) for name, side in sides.items()}
    if captions is not None:
        counts["captions"] = len(captions)
    if len(set(counts.values())) > 1:
        words = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise InputError(f"pairs: there are {words}; give one text an image, in the same order")
    if not counts["images"]:
        raise InputError("pairs: there are none; give images with captions")
    for name, side in sides.items():
        if side.dim() == 2 and side.is_floating_point():
            check_vectors(name, side)
    if captions is not None:
        for row, caption in enumerate(captions):
            if not isinstance(caption, str) or not caption.strip():
                raise InputError(f"captions: row {row} has none; write one or leave the image out")
        numbers: dict[str, int] = {}
        groups = torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in captions])
    else:
        groups = torch.unique(sides["texts"], dim=0, return_inverse=True)[1]
    return PairTensors(sides["images"], sides["texts"], groups)


class PairBatches(IterableDataset[Tensor]):
    """Endless batches of row numbers [B]: passes over n rows in new orders, a row once a batch; the rest of a pass is left out.

    Pass p is drawn from (seed, p) alone.

    Args:
        rows: n.
        size: B; where n is smaller, n.
        seed: of the orders.

    Raises:
        InputError: fewer than two rows, or batches of fewer, which have no negatives.
    """

    def __init__(self, rows: int, size: int, seed: int) -> None:
        if size < 2:
            raise InputError(f"batch_size: is {size}, which has no negatives; give 2 or more")
        if rows < 2:
            raise InputError(f"pairs: {rows} to train on, which has no negatives; give 2 or more")
        self._rows, self._size, self._seed = rows, min(size, rows), seed

    def __iter__(self) -> Iterator[Tensor]:
        """Begin with the first pass."""
        number = 0
        while True:
            order = torch.from_numpy(np.random.default_rng([self._seed, number]).permutation(self._rows))
            whole = len(order) // self._size * self._size
            yield from torch.split(order[:whole], self._size)
            number += 1


class PairsData(pl.LightningDataModule):
    """PairTensors in memory. Batches are row numbers: the module keeps the pairs where it computes, and none travels twice.

    Args:
        training: what is learned.
        validation: what is held out; None: nothing.
        batch_size: pairs that are told apart from each other.
        seed: of the batches.

    Raises:
        InputError: too few pairs for a batch, or validation of other widths.
    """

    def __init__(
        self, training: PairTensors, validation: PairTensors | None = None, batch_size: int = 256, seed: int = 0
    ) -> None:
        super().__init__()
        self.training, self.validation = training, validation
        self._batches, self._size = PairBatches(len(training), batch_size, seed), batch_size
        for name in ("images", "texts") if validation is not None else ():
            held, learned = (getattr(part, name).shape[1:] for part in (validation, training))
            if held != learned:
                raise InputError(f"validation: {name} are {list(held)}, in training {list(learned)}; use one encoder")

    def train_dataloader(self) -> PairBatches:
        """Endless row numbers of the training pairs."""
        return self._batches

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Row numbers of the validation pairs, as evenly parted as batches of about the training's size can be."""
        count = 0 if self.validation is None else len(self.validation)
        parts = torch.tensor_split(torch.arange(count), math.ceil(count / max(2, self._size))) if count else ()
        return DataLoader(list(parts), batch_size=None)  # type: ignore[arg-type]


def split_pairs(count: int, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Part row numbers at random: those to train on, and the share held out.

    Raises:
        InputError: the share is not between 0 and 1, or leaves fewer than two pairs on a side.
    """
    if not 0 < held_out < 1:
        raise InputError(f"held_out: is {held_out}; give a share between 0 and 1")
    order = np.random.default_rng(seed).permutation(count)
    held = round(held_out * count)
    if min(held, count - held) < 2:
        raise InputError(f"held_out: {held_out:g} of {count} pairs leaves fewer than two on a side; give more pairs")
    return order[held:], order[:held]
