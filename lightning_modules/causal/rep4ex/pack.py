"""Many autoencoders trained at once: seeds, restarts, worlds and lambdas as one stack of models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.causal.rep4ex import checks
from lightning_modules.causal.rep4ex.checks import Array
from lightning_modules.causal.rep4ex.module import MMRAutoencoder, ramp_at, reconstruction_error
from lightning_modules.causal.rep4ex.networks import StackedAutoencoder, blocks, one_cycle, update
from lightning_modules.causal.rep4ex.statistics import median_distance, moment_restriction
from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import pl, quiet_lightning

FOLDED = 0.01
"""A larger reconstruction error, as a share of the features' variance, means an encoder that is not injective."""

_EVALUATION_ROWS = 2000

_HELD_OUT = 0.1
"""Share of rows by which restarts are chosen."""


@dataclass(frozen=True)
class Fit:
    """One autoencoder to be trained.

    Args:
        x: [n, dx] features; uint8 for pixels, which are standardised with one spread.
        a: [n, k] actions.
        dim_z: d.
        lambda_mmr: weight of the restriction; 0 for a plain autoencoder.
        bandwidth: of the kernel, in median distances of actions.
        seed: of the first weights and the batches; the result depends on nothing else of the pack, but for rounding.

    Raises:
        InputError: k < d, dx < d, too few rows, constant or collinear actions, lengths that differ, NaN.
    """

    x: Array
    a: Array
    dim_z: int
    lambda_mmr: float = 30.0
    bandwidth: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", checks.features("x", self.x))
        object.__setattr__(self, "a", checks.matrix("a", self.a))
        checks.same_length(x=self.x, a=self.a)
        checks.dimensions(self.a.shape[1], self.dim_z, self.x.shape[1])
        checks.actions(self.a)
        if not (self.lambda_mmr >= 0 and self.bandwidth > 0):
            raise InputError(
                f"lambda_mmr: is {self.lambda_mmr}, bandwidth {self.bandwidth}; give 0 or more, and above 0"
            )


@dataclass(frozen=True)
class Training:
    """How all of a pack are trained.

    Args:
        steps: parameter updates.
        batch_size: rows of a step.
        lr: largest learning rate.
        width: of hidden layers.
        depth: number of hidden layers of each network.
        ramp: share of the steps over which lambda grows from 0.
        whiten: see `MMRAutoencoder`.
        estimator: see `MMRAutoencoder`.
    """

    steps: int = 1200
    batch_size: int = 512
    lr: float = 5e-3
    width: int = 64
    depth: int = 2
    ramp: float = 0.3
    whiten: bool = True
    estimator: str = "v"


@dataclass(frozen=True)
class Trained:
    """A trained autoencoder.

    Args:
        module: for `encode`.
        reconstruction: error on training rows, as a share of the features' variance.
        restriction: whitened Q there.
    """

    module: MMRAutoencoder
    reconstruction: float
    restriction: float

    @property
    def folded(self) -> bool:
        """Whether the reconstruction is too bad for an injective encoder."""
        return self.reconstruction > FOLDED


class AutoencoderPack(pl.LightningModule):
    """K autoencoders as stacked parameters. Adam acts by coordinate, so they are K independent runs.

    Args:
        fits: of equal shapes.
        training: how.
    """

    x: Tensor
    a: Tensor
    bandwidths: Tensor
    weights: Tensor

    def __init__(self, fits: Sequence[Fit], training: Training) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._fits, self._training = list(fits), training
        first = fits[0]
        self._scales = [scales(fit.x, fit.a) for fit in fits]
        features = [(fit.x - mean) / spread for fit, (mean, spread, _) in zip(fits, self._scales, strict=True)]
        widths = [fit.bandwidth * distance for fit, (_, _, distance) in zip(fits, self._scales, strict=True)]
        self.register_buffer("x", torch.from_numpy(np.stack(features)).float(), persistent=False)
        self.register_buffer("a", torch.from_numpy(np.stack([fit.a for fit in fits])).float(), persistent=False)
        self.register_buffer("bandwidths", torch.tensor(widths, dtype=torch.float32), persistent=False)
        lambdas = [fit.lambda_mmr for fit in fits]
        self.register_buffer("weights", torch.tensor(lambdas, dtype=torch.float32), persistent=False)
        # Plain autoencoders stand last: no kernel is computed for them.
        self._restricted = sum(value > 0 for value in lambdas)
        assert all(value > 0 for value in lambdas[: self._restricted])
        shape = first.x.shape[1], first.dim_z, training.width, training.depth
        self.networks = StackedAutoencoder(*shape, [fit.seed for fit in fits])
        self._generators = [torch.Generator().manual_seed(fit.seed + 1) for fit in fits]

    def train_dataloader(self) -> list[int]:
        """One entry a block of updates: rows are drawn here, from each model's own generator."""
        return blocks(self._training.steps)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Descend the sum of the models' losses."""
        update(self, self._training.steps, self._loss)

    def _loss(self) -> Tensor:
        x, a = self._draw()
        phi, reconstruction = self.networks(x)
        loss: Tensor = reconstruction_error(x, reconstruction).sum()
        some, options = self._restricted, self._training
        if some:
            q = moment_restriction(phi[:some], a[:some], self.bandwidths[:some], options.estimator, options.whiten)
            loss = loss + ramp_at(self.global_step, options.ramp * options.steps) * (self.weights[:some] * q).sum()
        return loss

    def configure_optimizers(self) -> Any:
        """Adam under a one-cycle schedule."""
        optimizer, schedule = one_cycle(list(self.parameters()), self._training.lr, self._training.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Features [K, B, dx] and actions [K, B, k] of the next batch."""
        count, size = self.x.shape[1], min(self._training.batch_size, self.x.shape[1])
        drawn = [torch.randint(count, (size,), generator=generator) for generator in self._generators]
        rows = torch.stack(drawn).to(self.x.device)
        models = torch.arange(len(rows), device=rows.device)[:, None]
        return self.x[models, rows], self.a[models, rows]

    @torch.no_grad()
    def trained(self) -> list[Trained]:
        """Give each model, after training."""
        phi, reconstruction = self.networks(self.x)
        errors = reconstruction_error(self.x, reconstruction).tolist()
        found, options = [], self._training
        for number, (fit, measures) in enumerate(zip(self._fits, self._scales, strict=True)):
            module = MMRAutoencoder(
                fit.x.shape[1],
                fit.a.shape[1],
                fit.dim_z,
                fit.lambda_mmr,
                fit.bandwidth,
                options.whiten,
                options.estimator,
                options.ramp,
                options.lr,
                options.width,
                options.depth,
                fit.seed,
            )
            module.standardise(*measures)
            module.networks.take(self.networks, number)
            part = phi[number, :_EVALUATION_ROWS].double(), self.a[number, :_EVALUATION_ROWS].double()
            q = float(moment_restriction(*part, self.bandwidths[number].double()))
            found.append(Trained(module.eval(), errors[number], q))
        return found


def scales(x: Array, a: Array) -> tuple[Array, Array, float]:
    """Mean and standard deviation [dx] of features, and the median distance of actions; a constant feature has spread 1.

    Pixels (uint8) have the root of their mean variance in common: with one of its own, a corner that one picture in a thousand lights
    would weigh as much as the middle.
    """
    spread = x.std(0)
    if x.dtype == np.uint8:
        spread = np.full_like(spread, np.sqrt((spread**2).mean()))
    return x.mean(0), np.where(spread > 1e-12, spread, 1.0), median_distance(a)


def train_autoencoders(fits: Sequence[Fit], training: Training | None = None, restarts: int = 1) -> list[Trained]:
    """Train autoencoders, those of equal shapes as one pack.

    Args:
        fits: any.
        training: how; None: the defaults.
        restarts: trainings of each, from other first weights. With more than one a tenth of the rows is held out of all of them, and
            that with the smallest reconstruction + lambda Q there is kept, of those that are not folded if there are any. (Q of
            training rows says little: a network can fit the chance dependence of its residuals on their actions.)

    Returns:
        One of each fit, in their order.
    """
    training = training or Training()
    groups: dict[tuple[Any, ...], list[tuple[int, Fit]]] = {}
    held = [_split(fit) if restarts > 1 else (fit, fit) for fit in fits]
    for number, (fit, _) in enumerate(held):
        for restart in range(restarts):
            again = replace(fit, seed=fit.seed + 1009 * restart)
            groups.setdefault((fit.x.shape, fit.a.shape, fit.dim_z), []).append((number, again))
    candidates: list[list[Trained]] = [[] for _ in fits]
    for members in groups.values():
        members.sort(key=lambda member: member[1].lambda_mmr == 0)
        pack = AutoencoderPack([fit for _, fit in members], training)
        with quiet_lightning():
            make_trainer(training.steps, []).fit(pack)
        for (number, _), trained in zip(members, pack.cpu().trained(), strict=True):
            candidates[number].append(trained)
    return [
        found[0] if restarts == 1 else min(found, key=lambda one: (one.folded, held_out_loss(one.module, rest)))
        for found, (_, rest) in zip(candidates, held, strict=True)
    ]


def _split(fit: Fit) -> tuple[Fit, Fit]:
    """Rows to train on and rows to choose by; both are all of them where a tenth would not determine the regression on actions."""
    n, k = fit.a.shape
    count = int(_HELD_OUT * n)
    if count < 10 * (k + 2):
        return fit, fit
    order = np.random.default_rng([fit.seed, 95]).permutation(n)
    try:
        first, second = (replace(fit, x=fit.x[part], a=fit.a[part]) for part in (order[count:], order[:count]))
    except InputError:  # an action so rare that one part has it always or never
        return fit, fit
    return first, second


@torch.no_grad()
def held_out_loss(module: MMRAutoencoder, fit: Fit) -> float:
    """Reconstruction + lambda Q of the fit's first 2,000 rows, with the scales of the training rows; infinite if not a number."""
    x, a = (torch.from_numpy(part[:_EVALUATION_ROWS]) for part in (fit.x, fit.a))
    features = ((x.to(module.mean) - module.mean) / module.spread)[None]
    phi, reconstruction = module.networks(features)
    loss = float(reconstruction_error(features, reconstruction).sum())
    if fit.lambda_mmr:
        q = moment_restriction(phi[0].double(), a, (fit.bandwidth * module.distance).double())
        loss += fit.lambda_mmr * float(q)
    return loss if math.isfinite(loss) else math.inf
