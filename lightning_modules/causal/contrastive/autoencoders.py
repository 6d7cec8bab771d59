"""Variational autoencoders: a plain one, which knows nothing of interventions, and one with the graph in its latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.causal.contrastive.losses import graph_penalty
from lightning_modules.causal.contrastive.module import ContrastiveCRLModule
from lightning_modules.causal.contrastive.networks import StackedEncoder, one_cycle
from lightning_modules.lightning_import import pl

Array = np.ndarray

_EVALUATION_ROWS = 2048


class VariationalAutoencoder(pl.LightningModule):
    """A plain VAE on the rows of all environments: summed squared error / (2 noise^2) + KL to N(0, I), per row.

    Args:
        dim_x: width of standardised rows.
        dim_z: latents.
        encoder: "mlp" or "conv" (see `StackedEncoder`); the decoder has one hidden layer.
        width: of hidden layers.
        lr: largest learning rate of the one-cycle schedule.
        noise: standard deviation of the decoder.
        seed: of the first weights and the latents' noise.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        dim_x: int,
        dim_z: int,
        encoder: str = "mlp",
        width: int = 128,
        lr: float = 3e-3,
        noise: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self._generator = torch.Generator().manual_seed(seed)
        self.encoder = StackedEncoder(encoder, dim_x, 2 * dim_z, width, 1, [seed])
        self.decoder = StackedEncoder("mlp", dim_z, dim_x, width, 1, [seed + 1])
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
        rate = self.hparams["lr"]
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = one_cycle(self.encoder, self.decoder, rate, rate, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def transform(self, x: Array) -> Array:
        """Means of the latents [n, d] of rows [n, dx]."""
        parts = [self._encoded(self._standard(part))[0] for part in torch.split(torch.from_numpy(x), _EVALUATION_ROWS)]
        found: Array = torch.cat(parts).numpy().astype(np.float64)
        return found

    def _standard(self, x: Tensor) -> Tensor:
        return ((x.float() / 255 if x.dtype == torch.uint8 else x) - self.mean) / self.spread

    def _encoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances [n, d] of standardised rows."""
        mean, log_var = self.encoder(x[None])[0].chunk(2, 1)
        return mean, log_var

    def _loss(self, batch: tuple[Tensor, Tensor], generator: torch.Generator | None) -> Tensor:
        x_obs, x_int = batch
        x = self._standard(torch.cat([x_obs, x_int.flatten(0, 1)]))
        mean, log_var = self._encoded(x)
        code = _drawn(mean, log_var, generator) if generator is not None else mean
        error = (x - self.decoder(code[None])[0]).square().sum(1) / self.hparams["noise"] ** 2
        divergence = (mean.square() + log_var.exp() - log_var - 1).sum(1)
        found: Tensor = 0.5 * (error + divergence).mean() / x.shape[1]
        return found


class GraphAutoencoder(ContrastiveCRLModule):
    """A VAE with the graph in its latents: the decoder is fed with the noise B z, and the head's cross-entropy is added.

    min  CE + Huber(x, decoder(B z + sigma xi)) + KL(N(B z, sigma^2) || N(0, I)) + eta sum |A_off| + mu (tr exp(A_off o A_off) - d),
    Huber summed over the features, the KL averaged over them, both averaged over observational rows only: it is their noise that is
    N(0, I). The encoder gives z and log sigma^2. Kept is what has the smallest cross-entropy on validation rows.

    Args:
        dim_x: width of rows.
        dim_z: latents.
        width: of hidden layers.
        lr: largest learning rate of encoder and decoder.
        lr_head: of the head.
        seed: of the first weights and the latents' noise.

    Source: the baseline of arXiv 2306.02235 as its authors' code has it, but that B z is computed as the paper has it (the code
    multiplies by the transpose of B), rows are standardised and one cycle of learning rates is run through.
    """

    def __init__(
        self, dim_x: int, dim_z: int, width: int = 128, lr: float = 1e-3, lr_head: float = 1e-2, seed: int = 0
    ) -> None:
        super().__init__(dim_x, dim_z, width=width, lr=lr, lr_head=lr_head, kappa=0.0, seed=seed)
        self._generator = torch.Generator().manual_seed(seed)
        self.encoder = StackedEncoder("mlp", dim_x, 2 * dim_z, width, 1, [seed])
        self.decoder = StackedEncoder("mlp", dim_z, dim_x, width, 1, [seed + 1])

    def forward(self, x: Tensor) -> Tensor:
        """Encodings [n, d] of rows [n, dx]."""
        return super().forward(x)[:, : self.dim_z]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of observational rows [n, dx] and interventional rows [n, d, dx]."""
        x = (batch[0] - self.mean) / self.spread
        z, log_var = super().forward(batch[0]).chunk(2, 1)
        mean = z @ self.head.b[0].mT
        rebuilt = self.decoder(_drawn(mean, log_var, self._generator)[None])[0]
        loss: Tensor = self._scored(batch)[1].mean() + nn.functional.huber_loss(rebuilt, x, reduction="sum") / len(x)
        loss = loss + 0.5 * (mean.square() + log_var.exp() - log_var - 1).mean()
        options: Any = self.hparams
        loss = loss + graph_penalty(self.head.parents, options.eta, options.mu).sum()
        self.log("train_loss", loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        """Adam under a one-cycle schedule, the decoder at the encoder's rate."""
        options: Any = self.hparams
        steps, networks = int(self.trainer.estimated_stepping_batches), nn.ModuleList([self.encoder, self.decoder])
        optimizer, schedule = one_cycle(networks, self.head, options.lr, options.lr_head, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _drawn(mean: Tensor, log_var: Tensor, generator: torch.Generator) -> Tensor:
    return mean + (0.5 * log_var).exp() * torch.randn(mean.shape, generator=generator).to(mean)
