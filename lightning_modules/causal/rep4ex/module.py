"""The autoencoder with maximum moment restriction (AE-MMR)."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.causal.rep4ex import checks
from lightning_modules.causal.rep4ex.checks import Array
from lightning_modules.causal.rep4ex.networks import StackedAutoencoder, one_cycle
from lightning_modules.causal.rep4ex.statistics import ESTIMATORS, moment_restriction
from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import Choice, IntLogUniform, LogUniform, Uniform
from lightning_modules.lightning_import import pl

VALIDATION_WEIGHT, VALIDATION_BANDWIDTH = 30.0, 0.3
"""What `val_loss` weighs the restriction with, and its kernel, whatever the module trains with: studies can compare trials."""


def reconstruction_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean squared error [K] per feature of standardised features [K, n, dx]: 1 for a constant."""
    return (x - reconstruction).square().mean((-2, -1))


class MMRAutoencoder(pl.LightningModule):
    """min over encoder phi and decoder eta:  mean ||X - eta(phi(X))||^2 / dx + lambda Q(phi).

    Features are standardised inside, and the kernel's bandwidth is relative to the median distance of actions: both are taken from
    the data module when training starts (`standardise`), and saved with the weights. lambda grows linearly from 0 over the
    first `ramp` of the steps. Over several processes Q is that of the whole batch.

    Args:
        dim_x: width of the features, dx.
        dim_a: of the actions, k.
        dim_z: of the latents, d.
        lambda_mmr: weight of the restriction; 0 is a plain autoencoder (AE-Vanilla).
        bandwidth: of the kernel, in median distances.
        whiten: whether phi has covariance I within the batch before Q is taken; without, a small phi makes Q small for free.
        estimator: "v" or "u" (see `statistics.mmr_statistic`).
        ramp: share of the steps.
        lr: largest learning rate of the one-cycle schedule.
        width: of hidden layers.
        depth: number of hidden layers of each network.
        seed: of the first weights.

    Raises:
        InputError: k < d, dx < d, or a value out of range.

    Source: arXiv 2310.04295, section 4. Whitening, ramp, schedule and bandwidth are ours.
    """

    mean: Tensor
    spread: Tensor
    distance: Tensor

    def __init__(
        self,
        dim_x: int = 10,
        dim_a: int = 2,
        dim_z: int = 2,
        lambda_mmr: Annotated[float, LogUniform(1.0, 300.0)] = 30.0,
        bandwidth: Annotated[float, LogUniform(0.1, 3.0)] = 0.3,
        whiten: bool = True,
        estimator: str = "v",
        ramp: Annotated[float, Uniform(0.0, 0.6)] = 0.3,
        lr: Annotated[float, LogUniform(5e-4, 2e-2)] = 5e-3,
        width: Annotated[int, IntLogUniform(16, 256)] = 64,
        depth: Annotated[int, Choice((1, 2, 3))] = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        checks.dimensions(dim_a, dim_z, dim_x)
        positive: dict[str, float] = {"bandwidth": bandwidth, "lr": lr, "width": width, "depth": depth}
        for name, value in positive.items():
            if not value > 0:
                raise InputError(f"{name}: is {value}; give a positive number")
        if not (lambda_mmr >= 0 and 0 <= ramp <= 1):
            raise InputError(f"lambda_mmr: {lambda_mmr} and ramp {ramp} must be 0 or more, ramp at most 1")
        if estimator not in ESTIMATORS:
            raise InputError(f"estimator: unknown {estimator!r}; choose v or u")
        self.save_hyperparameters()
        self.dim_x, self.dim_a, self.dim_z = dim_x, dim_a, dim_z
        self.networks = StackedAutoencoder(dim_x, dim_z, width, depth, [seed])
        self.register_buffer("mean", torch.zeros(dim_x))
        self.register_buffer("spread", torch.ones(dim_x))
        self.register_buffer("distance", torch.ones(()))

    def standardise(self, mean: Array, spread: Array, distance: float) -> None:
        """Set what features are standardised with, [dx] each, and the median distance of actions."""
        if np.shape(mean) != (self.dim_x,):
            raise InputError(f"dim_x: is {self.dim_x}, the data have {len(mean)} features; make them equal")
        for buffer, value in ((self.mean, mean), (self.spread, spread), (self.distance, distance)):
            buffer.copy_(torch.as_tensor(value))

    def setup(self, stage: str) -> None:
        """Take the data's scales from the data module."""
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and data is not None and hasattr(data, "scales"):
            if data.width_a != self.dim_a:
                raise InputError(f"dim_a: is {self.dim_a}, the data have {data.width_a} actions; make them equal")
            self.standardise(*data.scales())

    def forward(self, x: Tensor) -> Tensor:
        """Latents [n, d] of features [n, dx]."""
        found: Tensor = self.networks.encoder(((x - self.mean) / self.spread)[None])[0]
        return found

    @torch.no_grad()
    def encode(self, x: Array) -> Array:
        """Latents [n, d] of features [n, dx], float64.

        Raises:
            InputError: another width, or NaN.
        """
        x = checks.matrix("x", x)
        if x.shape[1] != self.dim_x:
            raise InputError(f"x: has {x.shape[1]} features, the encoder takes {self.dim_x}")
        found: Array = self(torch.from_numpy(x).to(self.mean)).cpu().numpy().astype(np.float64)
        return found

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of features [n, dx] and actions [n, k]."""
        options: Any = self.hparams
        x = ((batch[0] - self.mean) / self.spread)[None]
        phi, reconstruction = self.networks(x)
        loss = reconstruction_error(x, reconstruction).sum()
        if options.lambda_mmr:
            whole_phi, whole_a = self._of_all_processes(phi[0]), self._of_all_processes(batch[1])
            order = whole_a[:, 0].argsort() if self.trainer.world_size > 1 else slice(None)
            bandwidth = options.bandwidth * self.distance
            q = moment_restriction(whole_phi[order], whole_a[order], bandwidth, options.estimator, options.whiten)
            # Gradients flow to this process's rows alone, and its loss counts by its share of the batch: undo that.
            q = q.detach() + (q - q.detach()) * (len(whole_phi) / len(batch[0]))
            loss = loss + options.lambda_mmr * self._ramp() * q
        self.log("train_loss", loss.detach())
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log reconstruction, Q and their sum: what a study minimises, for the truth is not known outside simulations."""
        x = ((batch[0] - self.mean) / self.spread)[None]
        phi, reconstruction = self.networks(x)
        error = reconstruction_error(x, reconstruction).sum()
        q = moment_restriction(phi[0], batch[1], VALIDATION_BANDWIDTH * self.distance)
        values = {"val_reconstruction": error, "val_mmr": q, "val_loss": error + VALIDATION_WEIGHT * q}
        self.log_dict(values, batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        """Adam under a one-cycle schedule over the training's steps."""
        options: Any = self.hparams
        optimizer, schedule = one_cycle(list(self.networks.parameters()), options.lr, self._steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _steps(self) -> int:
        return int(self.trainer.estimated_stepping_batches)

    def _ramp(self) -> float:
        options: Any = self.hparams
        return ramp_at(self.global_step, options.ramp * self._steps())

    def _of_all_processes(self, values: Tensor) -> Tensor:
        """Rows [n, ...] of every process's part of the batch, which may differ in length; gradients of its own rows.

        Callers sort the rows, so that rounding does not depend on which process has which part.
        """
        if self.trainer.world_size == 1:
            return values
        counts = self.all_gather(torch.tensor(len(values), device=values.device))
        assert isinstance(counts, Tensor)
        longest = int(counts.max())
        gathered = self.all_gather(nn.functional.pad(values.detach(), (0, 0, 0, longest - len(values))))
        assert isinstance(gathered, Tensor)
        parts = [part[:count] for part, count in zip(gathered, counts.tolist(), strict=True)]
        parts[self.trainer.global_rank] = values
        return torch.cat(parts)


def ramp_at(step: int, length: float) -> float:
    """The share of lambda at a step: linear from 0 to 1 over `length` steps."""
    return min(1.0, step / length) if length > 0 else 1.0
