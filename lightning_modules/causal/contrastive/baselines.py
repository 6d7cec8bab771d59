"""What the method is compared with: a variational autoencoder and principal components, which know nothing of interventions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.causal.contrastive.data import GivenData
from lightning_modules.causal.contrastive.environments import InterventionalDataset
from lightning_modules.causal.contrastive.fits import fit_module
from lightning_modules.lightning_import import pl

Array = np.ndarray


class VariationalAutoencoder(pl.LightningModule):
    """A plain VAE on the rows of all environments: summed squared error / 2 + KL to N(0, I), per row.

    Args:
        dim_x: width of standardised rows.
        dim_z: latents.
        width: of the hidden layer of encoder and decoder.
        lr: largest learning rate of the one-cycle schedule.
        noise: standard deviation of the decoder.
        seed: of the first weights and the latents' noise.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self, dim_x: int, dim_z: int, width: int = 128, lr: float = 3e-3, noise: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self._generator = torch.Generator().manual_seed(seed)
        self.encoder = _network(dim_x, width, 2 * dim_z, self._generator)
        self.decoder = _network(dim_z, width, dim_x, self._generator)
        self.register_buffer("mean", torch.zeros(dim_x))
        self.register_buffer("spread", torch.ones(dim_x))

    def setup(self, stage: str) -> None:
        """Take the rows' scales from the data module."""
        mean, spread = self.trainer.datamodule.training.scales  # type: ignore[attr-defined]
        self.mean.copy_(torch.as_tensor(mean))
        self.spread.copy_(torch.as_tensor(spread))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Negative evidence bound, per row and feature."""
        return self._loss(batch, self._generator)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log it."""
        self.log("val_loss", self._loss(batch, None))

    def configure_optimizers(self) -> Any:
        """Adam under a one-cycle schedule."""
        steps, options = int(self.trainer.estimated_stepping_batches), self.hparams
        optimizer = torch.optim.Adam(self.parameters(), lr=options["lr"], fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=options["lr"], total_steps=max(steps, 2) + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def transform(self, x: Array) -> Array:
        """Means of the latents [n, d] of rows [n, dx]."""
        code = self.encoder((torch.from_numpy(x) - self.mean) / self.spread)
        found: Array = code[:, : self.hparams["dim_z"]].numpy().astype(np.float64)
        return found

    def _loss(self, batch: tuple[Tensor, Tensor], generator: torch.Generator | None) -> Tensor:
        x_obs, x_int = batch
        x = (torch.cat([x_obs, x_int.flatten(0, 1)]) - self.mean) / self.spread
        mean, log_var = self.encoder(x).chunk(2, 1)
        drawn = torch.randn(mean.shape, generator=generator).to(mean) if generator is not None else 0.0
        error = (x - self.decoder(mean + (0.5 * log_var).exp() * drawn)).square().sum(1) / self.hparams["noise"] ** 2
        divergence = (mean.square() + log_var.exp() - log_var - 1).sum(1)
        found: Tensor = 0.5 * (error + divergence).mean() / x.shape[1]
        return found


def autoencoder_latents(
    training: InterventionalDataset, held_out: InterventionalDataset, x: Array, steps: int = 1500, seed: int = 0
) -> Array:
    """Latents [n, d] of rows x by a variational autoencoder trained on all environments."""
    module = VariationalAutoencoder(training.dx, training.d, seed=seed)
    fit_module(module, GivenData(training, held_out, 256, seed), steps, steps)
    return module.cpu().transform(x)


def principal_components(data: InterventionalDataset, x: Array) -> Array:
    """The first d principal components [n, d] of the rows of all environments, of rows x."""
    mean, spread = data.scales
    rows = (np.concatenate([data.x_obs, *data.x_int]) - mean) / spread
    _, directions = np.linalg.eigh(np.cov(rows, rowvar=False))
    found: Array = ((x - mean) / spread) @ directions[:, ::-1][:, : data.d]
    return found


def _network(fan_in: int, width: int, fan_out: int, generator: torch.Generator) -> nn.Sequential:
    network = nn.Sequential(nn.Linear(fan_in, width), nn.LeakyReLU(0.2), nn.Linear(width, fan_out))
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)
    return network
