"""Data paired with noise: LightningDataModules whose batches are deterministic, whoever loads them.

A batch is data [B, d], noise [B, v, d], log q of the data [B] and of the noise [B, v]. Noise comes from a pool drawn once, with its log density,
so a step evaluates the model only. A pass goes through the data `copies` times, each time beside other noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.density.models import GaussianNoise
from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl

_FIT_ROWS = 20_000
"""Rows that whitening and noise are fitted to, at most; of streamed data they are spread evenly."""
_POOL_NUMBERS = 1 << 26
"""Numbers that a pool of noise holds at most (256 MiB); smaller pools are gone through several times."""
_VALIDATION_ROWS = 2048

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


class Rows:
    """Rows [n, ...] of an array in memory or in a mapped file, made into vectors [m, d] when they are asked for.

    Args:
        array: [n, ...] of any numbers.
        order: which rows, in which order.
        center: [D] subtracted, where there is a projection.
        projection: [D, d]; None: rows as they are.
    """

    def __init__(self, array: Any, order: np.ndarray, center: Tensor | None = None, projection: Tensor | None = None):
        self._array, self._order, self._center, self._projection = array, order, center, projection

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._order)

    def take(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Return float32 [m, d]; a mapped file is read here, and only these rows of it."""
        wanted = self._order[np.asarray(rows)]
        x = torch.from_numpy(np.asarray(self._array[wanted], dtype=np.float32)).flatten(1)
        return x if self._projection is None or self._center is None else (x - self._center) @ self._projection


class PairedRows(Dataset[Batch]):
    """Row i is data row i mod n beside noise row i mod K of the pool.

    Args:
        rows: n rows of data.
        noise: [K, v, d] the pool.
        law: of the noise.
        copies: how often a pass goes through the data.
    """

    def __init__(self, rows: Rows, noise: Tensor, law: GaussianNoise, copies: int) -> None:
        self._rows, self._noise, self._law, self._copies = rows, noise, law, copies
        self._log_noise = law.log_prob(noise)

    def __len__(self) -> int:
        """Count the rows of a pass."""
        return len(self._rows) * self._copies

    def __getitem__(self, index: int) -> Batch:
        """Return one row."""
        x, noise, log_x, log_noise = self.__getitems__([index])
        return x[0], noise[0], log_x[0], log_noise[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return a batch at once, which is what loaders ask for."""
        at = np.asarray(indices)
        x, places = self._rows.take(at % len(self._rows)), torch.from_numpy(at % len(self._noise))
        return x, self._noise[places], self._law.log_prob(x), self._log_noise[places]


def _as_it_is(batch: Any) -> Any:
    return batch


class NoisePairs(pl.LightningDataModule):
    """What the data modules in `data.py` share; they give `_load`.

    Attributes:
        noise: its law, after setup.
        tau_star: [k] parameters of the data in the mean family, where they are known.
        condition: of the covariance that was whitened, 1 without.
    """

    noise: GaussianNoise

    def __init__(
        self, dimension: int, noise_law: str, batch_size: int, noise_ratio: int, copies: int, seed: int
    ) -> None:
        super().__init__()
        for name, value in (
            ("dimension", dimension),
            ("batch_size", batch_size),
            ("noise_ratio", noise_ratio),
            ("copies", copies),
        ):
            if value < 1:
                raise InputError(f"{name}: {value} is below 1; give 1 or more")
        if noise_law not in ("standard", "diagonal", "full"):
            raise InputError(f"noise_law: unknown law {noise_law!r}; choose from standard, diagonal, full")
        self.dimension, self.noise_law, self.batch_size = dimension, noise_law, batch_size
        self.noise_ratio, self.copies, self.seed = noise_ratio, copies, seed
        self.tau_star: Tensor | None = None
        self.condition = 1.0
        self._parts: tuple[PairedRows, PairedRows] | None = None

    def _load(self, generator: torch.Generator) -> tuple[Rows, Rows]:
        """Return the rows for training and for validation."""
        raise NotImplementedError

    def _law(self, train: Rows) -> GaussianNoise:
        """Return the noise, here fitted to what is trained on."""
        if self.noise_law == "standard":
            return GaussianNoise.standard(self.dimension)
        return GaussianNoise.fit(spread_rows(train), diagonal=self.noise_law == "diagonal")

    def setup(self, stage: str | None = None) -> None:
        """Make rows and noise, once, from a generator seeded by `seed`.

        Raises:
            InputError: for data that cannot be read, or have another dimension.
        """
        if self._parts is not None:
            return
        generator = torch.Generator().manual_seed(self.seed)
        train, validation = self._load(generator)
        for rows in (train, validation):
            if not len(rows):
                raise InputError("data: a part has no rows; give five or more")
            width = rows.take([0]).shape[1]
            if width != self.dimension:
                raise InputError(f"dimension: is {self.dimension}, but the data have {width} coordinates; give that")
        self.noise = self._law(train)
        most = max(1, _POOL_NUMBERS // (self.noise_ratio * self.dimension))
        pools = [self._pool(min(most, count), generator) for count in (len(train) * self.copies, len(validation))]
        self._parts = (
            PairedRows(train, pools[0], self.noise, self.copies),
            PairedRows(validation, pools[1], self.noise, 1),
        )

    def _pool(self, count: int, generator: torch.Generator) -> Tensor:
        drawn = self.noise.sample(count * self.noise_ratio, generator)
        return drawn.view(count, self.noise_ratio, self.dimension)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled; a last batch of fewer rows is left out."""
        assert self._parts is not None
        part = self._parts[0]
        return DataLoader(
            part,
            min(self.batch_size, len(part)),
            shuffle=True,
            drop_last=True,
            collate_fn=_as_it_is,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """In order."""
        assert self._parts is not None
        return DataLoader(self._parts[1], _VALIDATION_ROWS, collate_fn=_as_it_is)


def whitening(x: Tensor, dimension: int) -> tuple[Tensor, Tensor, float]:
    """Return mean [D], projection [D, d] to d principal components of variance 1, and the condition of what was whitened.

    Args:
        x: [n, D].
        dimension: d.

    Raises:
        InputError: the rows span fewer dimensions.
    """
    rows = x.double()
    center = rows.mean(0)
    values, vectors = torch.linalg.eigh((rows - center).mT @ (rows - center) / max(1, len(rows) - 1))
    if dimension > x.shape[1] or not float(values[-dimension]) > 1e-10 * float(values[-1]):
        spanned = int((values > 1e-10 * values[-1]).sum())
        raise InputError(f"dimension: is {dimension}, but the data span {spanned} dimensions; give that or fewer")
    kept, axes = values[-dimension:].flip(0), vectors[:, -dimension:].flip(1)
    return center.float(), (axes / kept.sqrt()).float(), float(kept[0] / kept[-1])


def spread_rows(rows: Rows) -> Tensor:
    """Take rows evenly, no more than a fit needs."""
    return rows.take(np.linspace(0, len(rows) - 1, min(len(rows), _FIT_ROWS)).astype(np.int64))
