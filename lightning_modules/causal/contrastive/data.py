"""Data for `ContrastiveCRLModule` under `shiftlab train` and `tune`: a simulated world, or a folder of one's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.causal.contrastive.environments import InterventionalDataset, simulate
from lightning_modules.causal.contrastive.folder import read_interventional_folder
from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl

_EVALUATION_ROWS = 2048


class InterventionalRows(Dataset[tuple[Tensor, Tensor]]):
    """Row i: an observational row [dx] and one of every environment [d, dx]. Smaller environments start over.

    Rows of a batch are taken at once: [n, dx] and [n, d, dx].
    """

    def __init__(self, data: InterventionalDataset) -> None:
        self._obs, self._int = (
            torch.from_numpy(np.array(data.x_obs)),
            [torch.from_numpy(np.array(x)) for x in data.x_int],
        )
        self._length = max(len(data.x_obs), *map(len, data.x_int))

    def __len__(self) -> int:
        """Rows of the largest environment."""
        return self._length

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self._obs[row % len(self._obs)], torch.stack([x[row % len(x)] for x in self._int])

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Rows of a batch."""
        at = torch.tensor(rows)
        return self._obs[at % len(self._obs)], torch.stack([x[at % len(x)] for x in self._int], 1)


class GivenData(pl.LightningDataModule):
    """Environments at hand, split already.

    Args:
        training: rows to train on.
        held_out: to validate on.
        batch_size: rows of each environment in a batch.
        seed: of the order of rows.
    """

    training: InterventionalDataset
    held_out: InterventionalDataset

    def __init__(
        self, training: InterventionalDataset, held_out: InterventionalDataset, batch_size: int = 256, seed: int = 0
    ) -> None:
        super().__init__()
        self.training, self.held_out, self._size, self._seed = training, held_out, batch_size, seed

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches (x_obs [n, dx], x_int [n, d, dx]), in a new order every pass."""
        generator = torch.Generator().manual_seed(self._seed)
        rows = InterventionalRows(self.training)
        return DataLoader(rows, batch_size=self._size, shuffle=True, generator=generator, collate_fn=_as_they_are)

    def val_dataloader(self) -> DataLoader[Any]:
        """Held-out rows, in order."""
        return DataLoader(InterventionalRows(self.held_out), batch_size=_EVALUATION_ROWS, collate_fn=_as_they_are)


class InterventionalData(GivenData):
    """One observational and d interventional environments, split into training and validation rows.

    Args:
        dim_x: width of rows; of balls and images 3 x side x side.
        dim_z: d, latents and interventional environments.
        folder: a person's own data (see `read_interventional_folder`); "": a simulated world.
        mixing: "linear", "mlp" or "balls" of a simulated world.
        degree: average number of edges of a latent there.
        rows: of each environment there.
        shift: whether interventions shift the mean there.
        validation: share of the rows that are held out.
        batch_size: rows of each environment in a batch.
        seed: of the world, the split and the order of rows.

    Raises:
        InputError: as `simulate` and `read_interventional_folder`; batch_size < 1; a folder that does not fit dim_x or dim_z.
    """

    def __init__(
        self,
        dim_x: int = 20,
        dim_z: int = 5,
        folder: str = "",
        mixing: str = "mlp",
        degree: float = 2.0,
        rows: int = 5000,
        shift: bool = True,
        validation: float = 0.2,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        pl.LightningDataModule.__init__(self)
        if batch_size < 1:
            raise InputError(f"batch_size: is {batch_size}; give 1 or more")
        self._how = (dim_z, degree, dim_x, rows, mixing, seed)
        self._folder, self._shift, self._validation, self._size, self._seed = (
            folder,
            shift,
            validation,
            batch_size,
            seed,
        )

    def setup(self, stage: str | None = None) -> None:
        """Simulate or read, and split."""
        if hasattr(self, "training"):
            return
        dim_z, _, dim_x, *_ = self._how
        if self._folder:
            data = read_interventional_folder(self._folder, dim_z)
            if data.dx != dim_x:
                raise InputError(
                    f"dim_x: is {dim_x}, the rows of {self._folder} have {data.dx} numbers; make them equal"
                )
        else:
            data = simulate(*self._how, shift=self._shift, n_test=1).data
        self.training, self.held_out = data.split(self._validation, self._seed)


def _as_they_are(batch: Any) -> Any:
    return batch
