"""Recall over a long context: a few keys with values among filler, one key asked for at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl
from lightning_modules.sequence.transformer import Transformer


@dataclass(frozen=True)
class NeedleTask:
    """Sequences of filler with `needles` pairs of a key and its value, and the key that is asked for as the last token.

    Keys are tokens 0 to keys - 1 and differ within a sequence, values and fillers follow.

    Args:
        needles: pairs in a sequence.
        keys: in the vocabulary.
        values: in the vocabulary.
        fillers: in the vocabulary.

    Raises:
        InputError: a number below 1, or fewer keys than needles.
    """

    needles: int = 4
    keys: int = 16
    values: int = 16
    fillers: int = 16

    def __post_init__(self) -> None:
        for name in ("needles", "keys", "values", "fillers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: is {getattr(self, name)}; give 1 or more")
        if self.keys < self.needles:
            raise InputError(f"keys: {self.keys} are too few for {self.needles} needles; give {self.needles} or more")

    @property
    def vocabulary(self) -> int:
        """Tokens in all."""
        return self.keys + self.values + self.fillers

    def draw(self, count: int, length: int, generator: torch.Generator, depth: float | None = None) -> Tensor:
        """Draw sequences, each with its answer behind it.

        Args:
            count: of sequences.
            length: tokens of a sequence, the question at its end with them.
            generator: of all that is random.
            depth: where the needle that is asked for begins: 0 at the first token, 1 right before the question; None: anywhere.

        Returns:
            Tokens [count, length + 1].

        Raises:
            InputError: a length that the needles do not fit into, a depth outside 0 to 1.
        """
        hay = length - 1
        if hay < 2 * self.needles:
            raise InputError(
                f"length: {length} is too short for {self.needles} needles and a question; give {2 * self.needles + 1} or more"
            )
        if depth is not None and not 0 <= depth <= 1:
            raise InputError(f"depth: is {depth}; give 0 to 1")
        fillers = torch.randint(self.fillers, (count, hay), generator=generator) + self.keys + self.values
        keys = torch.rand(count, self.keys, generator=generator).argsort(1)[:, : self.needles]
        values = torch.randint(self.values, (count, self.needles), generator=generator) + self.keys
        starts = self._starts(count, hay, generator, depth)
        tokens = fillers.scatter(1, starts, keys).scatter(1, starts + 1, values)
        # Needles are in no order but for a given depth, so that asking for the first asks for any.
        return torch.cat([tokens, keys[:, :1], values[:, :1]], 1)

    def _starts(self, count: int, hay: int, generator: torch.Generator, depth: float | None) -> Tensor:
        """Where needles begin [count, needles], uniform over all layouts without overlap; the first at `depth` if given."""
        if depth is None:
            return _apart(count, hay, self.needles, generator)
        first = round(depth * (hay - 2))
        found, wrong = torch.full((count, self.needles), first), torch.arange(count)
        while len(wrong):
            # The others lie in the hay without the first needle; those across its place are drawn anew.
            others = _apart(len(wrong), hay - 2, self.needles - 1, generator)
            found[wrong, 1:] = others + 2 * (others >= first)
            wrong = wrong[(others == first - 1).any(1)]
        return found


def _apart(count: int, hay: int, needles: int, generator: torch.Generator) -> Tensor:
    """Places [count, needles] of pairs of tokens without overlap within `hay` tokens, in a random order."""
    shrunk = torch.rand(count, hay - needles, generator=generator).argsort(1)[:, :needles]  # a pair shrunk to one token
    return shrunk + (shrunk[:, :, None] > shrunk[:, None]).sum(2)  # each pair before it takes one token more


class NeedleData(pl.LightningDataModule):
    """Batches of fresh sequences of one length, without end.

    Args:
        length: tokens of a sequence, the question at its end with them.
        batch_size: sequences in a step.
        task: vocabulary and number of needles; None: the defaults.
        seed: of the sequences.

    Raises:
        InputError: a batch below 1, or a length that the needles do not fit into.
    """

    def __init__(self, length: int = 64, batch_size: int = 64, task: NeedleTask | None = None, seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"batch_size: is {batch_size}; give 1 or more")
        self.task = task or NeedleTask()
        self.vocabulary_size = self.task.vocabulary
        self._stream = _Stream(self.task, length, batch_size, seed)
        self.task.draw(1, length, torch.Generator())  # says now what is wrong with the length

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches [B, length + 1]."""
        return DataLoader(self._stream, batch_size=None)


class _Stream(IterableDataset[Tensor]):
    def __init__(self, task: NeedleTask, length: int, batch_size: int, seed: int) -> None:
        self._task, self._length, self._batch_size, self._seed = task, length, batch_size, seed

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            yield self._task.draw(self._batch_size, self._length, generator)


@torch.no_grad()
def recall(
    model: Transformer, task: NeedleTask, length: int, depth: float, count: int = 512, seed: int = 0
) -> tuple[float, float]:
    """How often the most likely token is the value asked for, and how often it is some needle's value.

    Chance is 1 / values, and 1 / needles for a model that names one of the sequence's values without matching the key.

    Args:
        model: in evaluation mode for it.
        task: vocabulary and number of needles.
        length: tokens of a sequence.
        depth: of the needle, 0 to 1.
        count: sequences.
        seed: of the sequences.
    """
    tokens = task.draw(count, length, torch.Generator().manual_seed(seed), depth)
    training = model.training
    model.eval()
    parts = [model.logits(model.features(part[:, :-1])[:, -1]).argmax(-1) for part in torch.split(tokens, 128)]
    model.train(training)
    found, values = torch.cat(parts), tokens[:, :-1]
    named = ((values == found[:, None]) & (values >= task.keys) & (values < task.keys + task.values)).any(1)
    return float((found == tokens[:, -1]).float().mean()), float(named.float().mean())
