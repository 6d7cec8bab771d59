"""Data for `MMRAutoencoder` under `shiftlab train` and `tune`: a simulated world, or a table of one's own."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.causal.rep4ex import checks
from lightning_modules.causal.rep4ex.checks import Array
from lightning_modules.causal.rep4ex.pack import scales
from lightning_modules.causal.rep4ex.scm import InterventionSCM
from lightning_modules.causal.rep4ex.tables import read_columns
from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import IntLogUniform
from lightning_modules.lightning_import import pl

_VALIDATION_SHARE = 0.2


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Features [n, dx] and actions [n, k], fetched a batch at a time."""

    def __init__(self, x: Array, a: Array) -> None:
        self.x, self.a = torch.from_numpy(x).float(), torch.from_numpy(a).float()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.x[row], self.a[row]

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Give all rows of a batch in two tensors."""
        return self.x[rows], self.a[rows]


class ActionData(pl.LightningDataModule):
    """Features and actions; a fifth of a table's rows, or as many new ones of a simulated world, are for validation.

    Args:
        dim_a: k.
        dim_z: d, of a simulated world.
        dim_x: dx.
        rows: of training, simulated.
        alpha: strength of actions (see `InterventionSCM`).
        gamma: half the width of their support.
        mixing: "mlp", "curve", "linear" or "sprites".
        batch_size: of all processes together.
        seed: of the world, the order of rows and the split of a table.
        table: path of a .csv, .parquet or .arrow file; "" simulates. Its widths must be dim_a and dim_x.
        a: columns of actions there (see `tables.read_columns`).
        x: columns of features.

    Raises:
        InputError: as `InterventionSCM` and `read_columns`; for a table in `setup`.
    """

    def __init__(
        self,
        dim_a: int = 2,
        dim_z: int = 2,
        dim_x: int = 10,
        rows: int = 5000,
        alpha: float = 2.0,
        gamma: float = 1.0,
        mixing: str = "mlp",
        batch_size: Annotated[int, IntLogUniform(128, 2048)] = 512,
        seed: int = 0,
        table: str = "",
        a: str = "a*",
        x: str = "x*",
    ) -> None:
        super().__init__()
        if batch_size < dim_a + 2:
            raise InputError(
                f"batch_size: {batch_size} rows do not determine a regression on {dim_a} actions; give more"
            )
        self._world = None if table else InterventionSCM(dim_a, dim_z, dim_x, alpha, gamma, mixing, seed=seed)
        self._rows, self._batch_size, self._seed = rows, batch_size, seed
        self._table, self._a, self._x = table, a, x

    def setup(self, stage: str | None = None) -> None:
        """Make or read the rows."""
        if self._world is not None:
            train, held = self._world.sample(self._rows), self._world.sample(int(_VALIDATION_SHARE * self._rows), 1)
            pairs = [(train.x, train.a), (held.x, held.a)]
        else:
            x, a = read_columns(self._table, self._x)[0], read_columns(self._table, self._a)[0]
            order = np.random.default_rng([self._seed, 91]).permutation(len(x))
            border = max(1, int(_VALIDATION_SHARE * len(x)))
            pairs = [(x[part], a[part]) for part in (order[border:], order[:border])]
        for _, a in pairs:
            checks.actions(a)
        self.width_a = pairs[0][1].shape[1]
        self._scales = scales(*pairs[0])
        self._parts = [Rows(*pair) for pair in pairs]

    def scales(self) -> tuple[Array, Array, float]:
        """Mean and standard deviation [dx] of the training features, and the median distance of actions."""
        return self._scales

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches in an order of their own seed; what is left over at the end of a pass is left out."""
        generator = torch.Generator().manual_seed(self._seed)
        size = min(self._batch_size, len(self._parts[0]))
        return DataLoader(
            self._parts[0], size, shuffle=True, drop_last=True, generator=generator, collate_fn=_as_they_are
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """All validation rows at once: the restriction is over pairs."""
        return DataLoader(self._parts[1], len(self._parts[1]), collate_fn=_as_they_are)


def _as_they_are(batch: Any) -> Any:
    return batch
