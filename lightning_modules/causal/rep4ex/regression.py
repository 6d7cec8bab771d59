"""Sums of networks as regressions: E[Y | P_1, ..., P_m] = f_1(P_1) + ... + f_m(P_m)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.causal.rep4ex import checks
from lightning_modules.causal.rep4ex.checks import Array
from lightning_modules.causal.rep4ex.networks import StackedMLP, blocks, one_cycle, update
from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import pl, quiet_lightning


@dataclass(frozen=True)
class RegressionTraining:
    """How a sum of networks is trained: the autoencoder's recipe."""

    steps: int = 1200
    batch_size: int = 512
    lr: float = 5e-3
    width: int = 64
    depth: int = 2


class AdditiveNetworks(pl.LightningModule):
    """One network a part, summed, under the squared loss; parts and outcome are standardised inside.

    With one part it is an ordinary multilayer perceptron.

    Args:
        parts: m arrays [n, w_j].
        y: [n].
        seed: of weights and batches.
        training: how.
    """

    y: Tensor

    def __init__(self, parts: Sequence[Array], y: Array, seed: int, training: RegressionTraining) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._training = training
        self._scales = [(part.mean(0), np.maximum(part.std(0), 1e-12)) for part in parts]
        self._level, self._size = float(y.mean()), max(float(y.std()), 1e-12)
        for number, part in enumerate(parts):
            self.register_buffer(f"part_{number}", self._scaled(number, part), persistent=False)
        self.register_buffer("y", torch.from_numpy((y - self._level) / self._size).float(), persistent=False)
        generators = [torch.Generator().manual_seed(seed + 7919 * number) for number in range(len(parts))]
        hidden = [training.width] * training.depth
        self.networks = nn.ModuleList(
            StackedMLP([part.shape[1], *hidden, 1], [generator])
            for part, generator in zip(parts, generators, strict=True)
        )
        self._generator = torch.Generator().manual_seed(seed + 1)

    def train_dataloader(self) -> list[int]:
        """One entry a block of updates."""
        return blocks(self._training.steps)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Descend the mean squared error of batches."""
        update(self, self._training.steps, self._loss)

    def _loss(self) -> Tensor:
        size = min(self._training.batch_size, len(self.y))
        rows = torch.randint(len(self.y), (size,), generator=self._generator).to(self.y.device)
        total = torch.zeros_like(self.y[rows])
        for number, network in enumerate(self.networks):
            total = total + network(self.get_buffer(f"part_{number}")[rows][None])[0, :, 0]
        return (total - self.y[rows]).square().mean()

    def configure_optimizers(self) -> Any:
        """Adam under a one-cycle schedule."""
        optimizer, schedule = one_cycle(list(self.parameters()), self._training.lr, self._training.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def term(self, number: int, part: Array) -> Array:
        """f_j [n] of a part [n, w_j], in the outcome's units; the outcome's mean is not in it."""
        found: Array = self.networks[number](self._scaled(number, part)[None])[0, :, 0].double().numpy()
        return found * self._size

    def predict(self, *parts: Array) -> Array:
        """E[Y | parts], [n]."""
        terms = [self.term(number, part) for number, part in enumerate(parts)]
        found: Array = self._level + np.sum(terms, axis=0)
        return found

    def _scaled(self, number: int, part: Array) -> Tensor:
        mean, spread = self._scales[number]
        return torch.from_numpy((part - mean) / spread).float()


def fit_networks(
    parts: Sequence[Array], y: Array, seed: int = 0, training: RegressionTraining | None = None
) -> AdditiveNetworks:
    """Train a sum of networks; `fit_networks([a], y).predict(a_star)` is the perceptron on actions, which cannot extrapolate.

    Args:
        parts: m arrays [n, w_j].
        y: [n].
        seed: of weights and batches.
        training: how; None: the defaults.

    Raises:
        InputError: lengths that differ, or NaN.
    """
    parts = [checks.matrix(f"part {number}", part) for number, part in enumerate(parts)]
    y = outcome(y)
    checks.same_length(y=y, **{f"part {number}": part for number, part in enumerate(parts)})
    module = AdditiveNetworks(parts, y, seed, training or RegressionTraining())
    with quiet_lightning():
        make_trainer(module._training.steps, []).fit(module)
    return module.cpu().eval()


def fit_least_squares(a: Array, y: Array) -> Array:
    """Coefficients [k + 1] of the regression of y [n] on a [n, k] with intercept, which stands last.

    Raises:
        InputError: as `checks.actions`, lengths that differ, or NaN.
    """
    a, y = checks.actions(a), outcome(y)
    checks.same_length(a=a, y=y)
    found: Array = np.linalg.lstsq(np.concatenate([a, np.ones((len(a), 1))], 1), y, rcond=None)[0]
    return found


def outcome(y: Array) -> Array:
    """Check outcomes: [n] or [n, 1] numbers.

    Raises:
        InputError: more columns, or NaN.
    """
    found = checks.matrix("y", y)
    if found.shape[1] != 1:
        raise InputError(f"y: has {found.shape[1]} columns; give one outcome")
    column: Array = found[:, 0]
    return column
