"""A dataset as tensors, its splits for one seed, and the stream of mini-batches of a trial."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from lightning_modules.data.environments import Dataset
from lightning_modules.data.splits import split_environment

_STEPS_AT_ONCE = 64


@dataclass(frozen=True)
class SplitDataset:
    """All environments in one tensor, with the rows of each environment's splits.

    Args:
        dataset: what was split.
        inputs: [N, ...] examples of all environments, one after another.
        labels: [N] class indices.
        rows_in: per environment, the rows [n_in] of its "in" split.
        rows_out: per environment, the rows [n_out] of its "out" split.
        group: [N] number 2 e + (1 if out) of each row's environment e and split.
    """

    dataset: Dataset
    inputs: Tensor
    labels: Tensor
    rows_in: tuple[Tensor, ...]
    rows_out: tuple[Tensor, ...]
    group: Tensor


def split_dataset(dataset: Dataset, seed: int) -> SplitDataset:
    """Put a dataset into tensors and split every environment 80/20 by the seed alone (or as the data say)."""
    with warnings.catch_warnings():  # arrays from the object store are read-only, and nothing writes to them
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        inputs = torch.cat([torch.from_numpy(e.inputs) for e in dataset.environments])
        labels = torch.cat([torch.from_numpy(e.labels) for e in dataset.environments])
    group = torch.empty(len(labels), dtype=torch.long)
    rows_in, rows_out, start = [], [], 0
    for index, environment in enumerate(dataset.environments):
        inside, outside = (torch.from_numpy(rows) + start for rows in split_environment(environment, seed, index))
        group[inside], group[outside] = 2 * index, 2 * index + 1
        rows_in.append(inside)
        rows_out.append(outside)
        start += len(environment)
    return SplitDataset(dataset, inputs, labels, tuple(rows_in), tuple(rows_out), group)


class RowStream:
    """Endless rows of mini-batches, of equal size from each training environment, sampled with replacement.

    Args:
        split: the data.
        environments: indices of the training environments, E of them.
        batch_size: examples per environment, B (DomainBed's convention).
        seed: of the sampling; the stream depends on nothing else.
    """

    def __init__(self, split: SplitDataset, environments: Sequence[int], batch_size: int, seed: int) -> None:
        rows = [split.rows_in[e] for e in environments]
        self._rows = torch.cat(rows)
        self._sizes_E1 = torch.tensor([[len(r)] for r in rows], dtype=torch.float64)
        self._starts_E1 = torch.cumsum(self._sizes_E1, 0).long() - self._sizes_E1.long()
        self._shape = (len(rows), batch_size)
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, steps: int) -> Tensor:
        """Draw the rows of the next steps, [steps, E, B]; the same rows however many are asked for at once."""
        uniform_SEB = torch.rand((steps, *self._shape), dtype=torch.float64, generator=self._generator)
        places = (uniform_SEB * self._sizes_E1).long() + self._starts_E1
        return self._rows.index_select(0, places.flatten()).view(places.shape)


class EnvironmentBatches(IterableDataset[tuple[Tensor, Tensor]]):
    """The mini-batches of one trial, or of K trials side by side.

    Args:
        split: where the examples are (the splits of the trials may differ, the examples are the same).
        streams: makes the streams of rows, so that every iteration starts at the beginning; one stream for a trial
            alone, a list of K for a pack.
        part: which of every environment's examples are given as inputs; the labels are always all of them.
        start: mini-batches to leave out at the beginning.

    Yields:
        inputs [E, B, ...] and labels [E, B]; for a pack [K, E, B, ...] and [K, E, B].
    """

    def __init__(
        self,
        split: SplitDataset,
        streams: Callable[[], RowStream | list[RowStream]],
        part: slice | None = None,
        start: int = 0,
    ) -> None:
        self._split = split
        self._make_streams = streams
        self._part, self._start = part, start

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Start from the beginning; of several iterations only the last one may go on."""
        self._streams, inputs = self._make_streams(), self._split.inputs
        self._skip(self._start)
        while True:
            if isinstance(self._streams, list):
                self._rows = torch.stack([stream.draw(_STEPS_AT_ONCE) for stream in self._streams], 1)
            else:
                self._rows = self._streams.draw(_STEPS_AT_ONCE)
            for step in range(_STEPS_AT_ONCE):
                rows = self._rows[step]
                labels = self._split.labels[rows]
                if self._part is not None:
                    rows = rows[..., self._part]
                flat = rows.flatten()  # index_select copies rows several times as fast as indexing does
                yield inputs.index_select(0, flat).view(*rows.shape, *inputs.shape[1:]), labels

    def _skip(self, steps: int) -> None:
        for stream in self._streams if isinstance(self._streams, list) else [self._streams]:
            for done in range(0, steps, _STEPS_AT_ONCE):
                stream.draw(min(_STEPS_AT_ONCE, steps - done))

    def keep(self, trials: Sequence[int]) -> None:
        """Go on with some of the trials of a pack, in this order, from the next batch on."""
        assert isinstance(self._streams, list)
        self._streams = [self._streams[k] for k in trials]
        self._rows = self._rows[:, list(trials)]
