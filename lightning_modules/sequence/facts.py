"""Tables of random facts, to measure how much a decoder can hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import IntLogUniform
from lightning_modules.lightning_import import pl


class FactData(pl.LightningDataModule):
    """Facts (domain, symbol, value): a value drawn once for every pair, so that nothing but memory helps.

    Tokens are the domains, then the symbols, then the values, of which there are as many as symbols. Give a `LanguageModel`
    the vocabulary domains + 2 symbols, context 3 and answer_start 2.

    Args:
        domains: tables.
        symbols: entries of a table.
        batch_size: facts in a step, drawn anew each time.
        seed: of the table and of the batches.

    Raises:
        InputError: a number below 1.
    """

    def __init__(
        self,
        domains: int = 64,
        symbols: int = 32,
        batch_size: Annotated[int, IntLogUniform(64, 1025)] = 512,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in {"domains": domains, "symbols": symbols, "batch_size": batch_size}.items():
            if value < 1:
                raise InputError(f"{name}: is {value}; give 1 or more")
        self.vocabulary_size = domains + 2 * symbols
        generator = torch.Generator().manual_seed(seed)
        values = torch.randint(symbols, (domains * symbols,), generator=generator)
        pairs = torch.cartesian_prod(torch.arange(domains), torch.arange(symbols))
        self.facts = torch.stack([pairs[:, 0], domains + pairs[:, 1], domains + symbols + values], 1)
        self._batch_size, self._seed = batch_size, seed

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches [B, 3] without end."""
        return DataLoader(_Drawn(self.facts, self._batch_size, self._seed), batch_size=None)

    def val_dataloader(self) -> DataLoader[Any]:
        """All facts: what is measured is how many are known."""
        return DataLoader(self.facts, 1024)  # type: ignore[arg-type]


class _Drawn(IterableDataset[Tensor]):
    def __init__(self, rows: Tensor, batch_size: int, seed: int) -> None:
        self._rows, self._batch_size, self._seed = rows, batch_size, seed

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self._seed + 1)  # not the numbers that drew the values
        while True:
            yield self._rows[torch.randint(len(self._rows), (self._batch_size,), generator=generator)]
