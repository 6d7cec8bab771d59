"""A user's training loader, dealt out to processes: the batch stays the user's, each process loads its part of it.

What is in a batch depends on the training alone, not on the number of processes: order and sampling come from a random
stream of their own, so a training that goes on, elsewhere or with fewer processes, sees what it would have seen.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.data import DataLoader, IterableDataset

from lightning_modules.errors import InputError
from lightning_modules.fitting.keeping import Position
from lightning_modules.fitting.spread import Spread

_FIRST_ROWS = 512


class DealtLoader:
    """Deals a loader's batches out; Lightning takes it for a loader.

    Args:
        loader: a DataLoader or any iterable of batches.
        spread: which part this process takes.
        seed: of the order; the stream depends on it and the number of the pass alone.
        start: where the training goes on.
        what: names the loader in messages.
    """

    def __init__(self, loader: Any, spread: Spread, seed: int, start: Position, what: str) -> None:
        if not isinstance(loader, Iterable) or isinstance(loader, dict | list | tuple):
            raise InputError(f"{what}: gives {type(loader).__name__}; give one loader of training data")
        self._spread, self._seed, self._what = spread, seed, what
        self._epoch, self._skip = start.epoch, start.batches
        self._weights: deque[float] = deque()
        # Of a stream batch_sampler is set too, though it chooses nothing.
        streams = isinstance(getattr(loader, "dataset", None), IterableDataset)
        self._deals_rows = isinstance(loader, DataLoader) and loader.batch_sampler is not None and not streams
        self._loader: Any = _Parts.into(loader, self) if isinstance(loader, DataLoader) and self._deals_rows else loader
        self._sized: Any = loader if hasattr(loader, "__len__") and not _is_endless(loader) else None

    def __len__(self) -> int:
        """Batches of a pass, where the loader knows."""
        if self._sized is None:
            raise TypeError("its length is not known")
        return len(self._sized)

    def __iter__(self) -> Iterator[Any]:
        """Make the next pass, the first one from where the training goes on."""
        epoch, skip = self._epoch, self._skip
        self._epoch, self._skip = epoch + 1, 0
        self._weights.clear()
        self.pass_seed, self.pass_skip = int(np.random.SeedSequence([self._seed, epoch]).generate_state(1)[0]), skip
        if self._deals_rows:
            # What the loader's own processes draw is the trial's too, another stream in every process.
            own = np.random.SeedSequence([self.pass_seed, self._spread.rank]).generate_state(1)[0]
            self._loader.generator.manual_seed(int(own))
            yield from self._loader
            return
        for number, batch in enumerate(_own_random(self._loader, self.pass_seed)):
            if number >= skip:
                yield self._deal(batch)

    def deal_rows(self, rows: list[Any]) -> list[Any]:
        """Return this process's part of a batch's rows, one at least, and remember its weight."""
        part = self._spread.part(len(rows))
        own = rows[part]
        self._weights.append(len(own) * self._spread.world / len(rows))
        return own or rows[:1]

    def _deal(self, batch: Any) -> Any:
        if self._spread.alone:
            self._weights.append(1.0)
            return batch
        sizes = {leaf.shape[0] for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor) and leaf.dim()}
        if len(sizes) != 1:
            raise InputError(f"{self._what}: cannot deal out a batch whose tensors have {sorted(sizes)} rows")
        rows = self.deal_rows(list(range(sizes.pop())))
        part = slice(rows[0], rows[-1] + 1)
        return tree_map(lambda leaf: leaf[part] if isinstance(leaf, Tensor) and leaf.dim() else leaf, batch)

    def next_weight(self) -> float:
        """Return the weight of the next batch, in their order."""
        return self._weights.popleft()

    def first_batches(self, count: int) -> list[Any]:
        """Load the first examples in the data's own order, whole batches of an iterable; fewer where there are fewer."""
        dataset: Any = getattr(self._loader, "dataset", None)
        if self._deals_rows and hasattr(dataset, "__len__"):
            rows = [dataset[number] for number in range(min(count, len(dataset)))]
            return [self._loader.collate_fn(rows[i : i + _FIRST_ROWS]) for i in range(0, len(rows), _FIRST_ROWS)]
        found, taken = list[Any](), 0
        for batch in _own_random(self._loader, self._seed):
            found.append(batch)
            taken += max(
                (len(leaf) for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor) and leaf.dim()), default=1
            )
            if taken >= count:
                break
        return found


class _Parts:
    """A batch sampler that gives this process's rows of every batch."""

    def __init__(self, sampler: Any, owner: DealtLoader) -> None:
        self._sampler, self._owner = sampler, owner
        generator = getattr(getattr(sampler, "sampler", None), "generator", None)
        self._users = generator if isinstance(generator, torch.Generator) else None
        self._users_seed = self._users.initial_seed() if self._users is not None else 0

    @classmethod
    def into(cls, loader: DataLoader[Any], owner: DealtLoader) -> DataLoader[Any]:
        """Make the same loader with such a sampler."""
        return DataLoader(
            loader.dataset,
            batch_sampler=cls(loader.batch_sampler, owner),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[list[Any]]:
        seed, skip = self._owner.pass_seed, self._owner.pass_skip
        if self._users is not None:  # its seed counts, and the pass's number too
            self._users.manual_seed(int(np.random.SeedSequence([self._users_seed, seed]).generate_state(1)[0]))
        for number, rows in enumerate(_own_random(self._sampler, seed)):
            if number >= skip:
                yield self._owner.deal_rows(list(rows))

    def __len__(self) -> int:
        return len(self._sampler)


def _is_endless(loader: Any) -> bool:
    dataset = getattr(loader, "dataset", None)
    return isinstance(dataset, IterableDataset) and not hasattr(dataset, "__len__")


def _own_random(items: Iterable[Any], seed: int) -> Iterator[Any]:
    """Iterate with global random numbers of its own, that nobody else moves and that move nobody else's."""
    end, iterator = object(), None
    with _Borrowed() as borrowed:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - what users' samplers draw from
        random.seed(seed)
        iterator = iter(items)
        own = borrowed.now()
    while True:
        with _Borrowed() as borrowed:
            borrowed.put(own)
            item = next(iterator, end)
            own = borrowed.now()
        if item is end:
            return
        yield item


class _Borrowed:
    """The CPU's global random numbers, put back at the end of the block."""

    def __enter__(self) -> _Borrowed:
        self._before = self.now()
        return self

    def __exit__(self, *_: object) -> None:
        self.put(self._before)

    @staticmethod
    def now() -> tuple[Any, ...]:
        return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002

    @staticmethod
    def put(state: tuple[Any, ...]) -> None:
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
        random.setstate(state[2])
