"""How every model here is trained: Adam with cosine decay on the negative ELBO, the KL warmed up, from streams of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.generative.latent_variable_model import LatentVariableModel
from lightning_modules.generative.partition import binarise, check_data
from lightning_modules.lightning_import import pl, quiet_lightning


class VariationalTraining(pl.LightningModule):
    """Trains a model by its ELBO with one sample of the latents for each example; the loss is a mean over the batch.

    Batches are x [B, D], or tuples that begin with it. Where the model is binary, x holds intensities in [0, 1], which are
    binarised anew at every step; binary data stay what they are. All noise comes from `seed`, the step and the process.

    Args:
        model: what is trained.
        lr: Adam's learning rate at the start; it falls to 0 along a cosine.
        warmup: share of the steps over which the KL's weight rises from 0 to 1. Without, upper layers tend to stay unused.
        clip: largest norm of the whole gradient.
        seed: of the noise.

    Raises:
        InputError: a setting is out of range.

    Source: ours; the paper's appendix with its schedules was not at hand.
    """

    def __init__(
        self, model: LatentVariableModel, lr: float = 2e-3, warmup: float = 0.375, clip: float = 20.0, seed: int = 0
    ) -> None:
        if not lr > 0 or not clip > 0:
            raise InputError(f"lr, clip: {lr}, {clip}; give numbers above 0")
        if not 0 <= warmup <= 1:
            raise InputError(f"warmup: {warmup}; give a share of the steps from 0 to 1")
        super().__init__()
        self.model = model
        self._lr, self._warmup, self._clip, self._seed = lr, warmup, clip, seed

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Negative ELBO with the KL's weight of the step, a mean over the batch."""
        generator = self._noise(self.global_step, 1 + self.global_rank)
        x = self._data(batch, generator)
        model = self.model
        trace = model.trace(x, model.evidence(x), 1, generator)
        return (self._kl_weight() * trace.kl.sum(-1) - trace.log_likelihood).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the negative ELBO as val_loss, its parts as val_reconstruction and val_kl; with the same noise every time."""
        generator = self._noise(batch_idx, 0)
        x = self._data(batch, generator)
        terms = self.model.elbo(x, 1, generator)
        values = {"loss": -terms.elbo, "reconstruction": terms.reconstruction, "kl": terms.kl.sum(1)}
        for name, value in values.items():
            self.log(f"val_{name}", value.mean(), batch_size=len(x))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the whole gradient."""
        torch.nn.utils.clip_grad_norm_(self.parameters(), self._clip)

    def configure_optimizers(self) -> Any:
        """Adam, decayed along a cosine to 0 at the trainer's last step."""
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=self._lr, fused=True)
        total = self._total()

        def factor(step: int) -> float:
            return 0.5 * (1 + math.cos(math.pi * min(step / total, 1))) if total else 1.0

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _total(self) -> int:
        return max(0, int(self.trainer.max_steps))

    def _kl_weight(self) -> float:
        rising = self._warmup * self._total()
        return min(1.0, self.global_step / rising) if rising else 1.0

    def _data(self, batch: Any, generator: torch.Generator) -> Tensor:
        x: Tensor = batch[0] if isinstance(batch, tuple | list) else batch
        if self.model.binary:
            x = binarise(x, generator)
        check_data(x, self.model.partition, self.model.binary)
        return x

    def _noise(self, step: int, stream: int) -> torch.Generator:
        state = int(np.random.SeedSequence([self._seed, step, stream]).generate_state(1)[0])
        return torch.Generator(device=self.device).manual_seed(state)


class Batches(IterableDataset[Tensor]):
    """Endless batches: rows of x in new orders, or draws of a simulator.

    Args:
        source: x [n, D], or a function of (rows, generator) that draws that many.
        size: rows of a batch.
        seed: of the orders and draws.
    """

    def __init__(self, source: Tensor | Callable[[int, torch.Generator], Tensor], size: int, seed: int) -> None:
        self._source, self._size, self._seed = source, size, seed

    def __iter__(self) -> Iterator[Tensor]:
        """Start from the beginning."""
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            if isinstance(self._source, Tensor):
                order = torch.randperm(len(self._source), generator=generator)
                for rows in torch.split(order, self._size):
                    if len(rows) == self._size or len(order) < self._size:
                        yield self._source[rows]
            else:
                yield self._source(self._size, generator)


class DensityTraining(VariationalTraining):
    """The same for a density without latents: the loss is the mean of -log p(x).

    Args:
        density: what is trained.
        log_prob: its log density [B] of x [B, D].
        lr: Adam's, falling along a cosine.
        seed: of nothing here but the interface.
    """

    def __init__(
        self, density: torch.nn.Module, log_prob: Callable[[Tensor], Tensor], lr: float = 2e-3, seed: int = 0
    ) -> None:
        super().__init__(density, lr, seed=seed)  # type: ignore[arg-type]
        self._log_prob = log_prob

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Mean of -log p(x)."""
        return -self._log_prob(batch).mean()


def fit(
    model: LatentVariableModel,
    source: Tensor | Callable[[int, torch.Generator], Tensor],
    steps: int,
    batch_size: int = 100,
    lr: float = 2e-3,
    warmup: float = 0.375,
    clip: float = 20.0,
    seed: int = 0,
) -> None:
    """Train a model in place, without validation.

    Args:
        model: what is trained; parameters that require no gradient stay.
        source: x [n, D], intensities where the model is binary, or a simulator, see `Batches`.
        steps: parameter updates.
        batch_size: rows of a batch.
        lr: see `VariationalTraining`.
        warmup: see `VariationalTraining`.
        clip: see `VariationalTraining`.
        seed: of batches and noise.

    Raises:
        InputError: a setting is out of range, or x is not what the likelihood needs.
    """
    if steps < 1 or batch_size < 1:
        raise InputError(f"steps, batch_size: {steps}, {batch_size}; give 1 or more")
    _run(VariationalTraining(model, lr, warmup, clip, seed), source, steps, batch_size, seed)


def fit_density(
    density: torch.nn.Module,
    log_prob: Callable[[Tensor], Tensor],
    source: Tensor | Callable[[int, torch.Generator], Tensor],
    steps: int,
    batch_size: int = 100,
    lr: float = 2e-3,
    seed: int = 0,
) -> None:
    """Train a density without latents in place by maximum likelihood; arguments as of `fit`, `log_prob` maps x to [B]."""
    _run(DensityTraining(density, log_prob, lr, seed), source, steps, batch_size, seed)


def _run(
    module: VariationalTraining,
    source: Tensor | Callable[[int, torch.Generator], Tensor],
    steps: int,
    batch_size: int,
    seed: int,
) -> None:
    loader: Iterable[Tensor] = DataLoader(
        Batches(source, batch_size, seed), batch_size=None, generator=torch.Generator().manual_seed(seed)
    )
    with quiet_lightning():
        make_trainer(steps, []).fit(module, train_dataloaders=loader)
    module.cpu()
