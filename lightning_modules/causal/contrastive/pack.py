"""Many models trained at once: seeds, restarts and worlds as one stack of networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.causal.contrastive.environments import InterventionalDataset
from lightning_modules.causal.contrastive.losses import centering_penalty, contrastive_cross_entropy, graph_penalty
from lightning_modules.causal.contrastive.module import ContrastiveCRLModule
from lightning_modules.causal.contrastive.networks import ContrastiveHead, StackedEncoder, one_cycle
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import pl, quiet_lightning

_BLOCK_NUMBERS = 1 << 25


@dataclass(frozen=True)
class Training:
    """How all of a pack are trained; see `ContrastiveCRLModule` for what is not said here.

    Args:
        steps: parameter updates.
        batch_size: rows of each environment in a step.
        check_every: steps between two validations; the end is validated too.
        validation: share of the rows that are held out; the weights of the best validation are kept.
        encoder: "mlp", "linear" or "conv".
        head: "parametric" or "linear".
        width: of hidden layers.
        depth: their number.
        eta: weight of |A|.
        mu: of the acyclicity penalty.
        kappa: of the centering.
        lr: largest learning rate of the encoder.
        lr_head: of the head.
    """

    steps: int = 1500
    batch_size: int = 256
    check_every: int = 100
    validation: float = 0.2
    encoder: str = "mlp"
    head: str = "parametric"
    width: int = 128
    depth: int = 1
    eta: float = 1e-4
    mu: float = 1e-5
    kappa: float = 0.1
    lr: float = 1e-3
    lr_head: float = 1e-2


@dataclass(frozen=True)
class Fit:
    """One model to be trained.

    Args:
        data: its environments.
        seed: of the split, the first weights and the batches; the result depends on nothing else of the pack, but for rounding.
    """

    data: InterventionalDataset
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Args:
        module: for `transform`, `edge_scores` and the like.
        cross_entropy: on the held-out rows, mean over environments; the smallest of the training.
        steps: updates after which it was.
        training: what it was trained on.
        held_out: and what not.
    """

    module: ContrastiveCRLModule
    cross_entropy: float
    steps: int
    training: InterventionalDataset
    held_out: InterventionalDataset


class ContrastivePack(pl.LightningModule):
    """K models as stacked parameters. Adam acts by coordinate, so they are K independent runs.

    Args:
        fits: with equally many latents, features and rows.
        training: how.
    """

    rows: Tensor
    held: Tensor
    means: Tensor
    spreads: Tensor

    def __init__(self, fits: Sequence[Fit], training: Training) -> None:
        super().__init__()
        self._fits, self._training = list(fits), training
        self._shape = len(fits), fits[0].data.d + 1, fits[0].data.dx
        parts = []
        for part, name in enumerate(("rows", "held")):
            values, views = self._stacked(part)
            self.register_buffer(name, values, persistent=False)
            parts.append(views)
        self._parts = list(zip(*parts, strict=True))
        scales = [part.scales for part, _ in self._parts]
        for name, stack in (
            ("means", np.stack([mean for mean, _ in scales])[:, None, None]),
            ("spreads", np.stack([spread for _, spread in scales])[:, None, None]),
        ):
            self.register_buffer(name, torch.from_numpy(stack).float(), persistent=False)
        seeds = [fit.seed for fit in fits]
        self.encoder = StackedEncoder(
            training.encoder, self._shape[2], self._shape[1] - 1, training.width, training.depth, seeds
        )
        self.head = ContrastiveHead(self._shape[1] - 1, len(fits), training.head, seeds)
        self._generators = [torch.Generator().manual_seed(seed + 1) for seed in seeds]
        self._best: list[tuple[float, int, dict[str, Tensor]]] = [(math.inf, 0, {}) for _ in fits]

    def _stacked(self, part: int) -> tuple[Tensor, list[InterventionalDataset]]:
        """Rows [K, d + 1, n, dx] of the training (0) or the validation (1), and each model's data as views of them.

        Smaller environments start over. Nothing is held twice: images fill the memory.
        """
        models, environments, width = self._shape
        orders = [fit.data.split_rows(self._training.validation, fit.seed, part) for fit in self._fits]
        longest = max(map(len, orders[0]))
        stack = np.empty((models, environments, longest, width), self._fits[0].data.x_obs.dtype)
        views = []
        for place, fit, order in zip(stack, self._fits, orders, strict=True):
            for to, rows, taken in zip(place, fit.data.arrays, order, strict=True):
                # Indices are sound; any mode but "raise" writes without a buffer of the same size.
                np.take(rows, np.resize(taken, longest), axis=0, out=to, mode="clip")
            first, *others = (to[: len(taken)] for to, taken in zip(place, order, strict=True))
            views.append(InterventionalDataset(first, others))
        return torch.from_numpy(stack), views

    def train_dataloader(self) -> list[int]:
        """One entry a step: rows are drawn here, from each model's own generator."""
        return [0] * self._training.steps

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Sum of the models' losses."""
        z = self.encoder(self._draw()).unflatten(1, (self._shape[1], -1))  # [K, d + 1, B, d]
        options, z_obs = self._training, z[:, 0]
        loss = contrastive_cross_entropy(self.head(z_obs), self.head.own(z[:, 1:])).mean(1)
        loss = loss + options.kappa * centering_penalty(z_obs)
        if self.head.kind == "parametric":
            loss = loss + graph_penalty(self.head.parents, options.eta, options.mu)
        return loss.sum()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Validate where it is due."""
        if self.global_step % self._training.check_every == 0 or self.global_step == self._training.steps:
            self._validate()

    def configure_optimizers(self) -> Any:
        """Adam under a one-cycle schedule."""
        options = self._training
        optimizer, schedule = one_cycle(self.encoder, self.head, options.lr, options.lr_head, options.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _draw(self) -> Tensor:
        """Standardised rows [K, (d + 1) B, dx] of the next batch."""
        models, environments, width = self._shape
        count, size = self.rows.shape[2], self._training.batch_size
        shape = environments, size
        drawn = torch.stack([torch.randint(count, shape, generator=g) for g in self._generators]).to(self.rows.device)
        blocks = torch.arange(models * environments, device=drawn.device).view(models, environments, 1)
        taken = self.rows.view(-1, width).index_select(0, (blocks * count + drawn).flatten())
        return self._standard(taken.view(models, environments, size, width)).flatten(1, 2)

    def _standard(self, rows: Tensor) -> Tensor:
        """Floats [K, d + 1, B, dx], of pixels or numbers."""
        return ((rows.float() / 255 if rows.dtype == torch.uint8 else rows) - self.means) / self.spreads

    @torch.no_grad()
    def _validate(self) -> None:
        models, environments, width = self._shape
        size = max(1, _BLOCK_NUMBERS // (models * environments * width))
        total = torch.zeros(models, environments - 1, dtype=torch.float64, device=self.held.device)
        for part in torch.split(self.held, size, 2):
            z = self.encoder(self._standard(part).flatten(1, 2)).unflatten(1, (environments, -1))
            found = contrastive_cross_entropy(self.head(z[:, 0]), self.head.own(z[:, 1:]))
            total += found.double() * part.shape[2]
        values = (total / self.held.shape[2]).mean(1).tolist()
        for number, value in enumerate(values):
            if value < self._best[number][0]:
                state = {
                    name: stack[number : number + 1].detach().cpu().clone() for name, stack in self.named_parameters()
                }
                self._best[number] = value, self.global_step, state

    @torch.no_grad()
    def trained(self) -> list[Trained]:
        """Give each model at its best validation, after training."""
        found, options = [], self._training
        for fit, (training, held), (value, step, state) in zip(self._fits, self._parts, self._best, strict=True):
            module = ContrastiveCRLModule(
                fit.data.dx,
                fit.data.d,
                options.encoder,
                options.head,
                options.width,
                options.depth,
                options.eta,
                options.mu,
                options.kappa,
                options.lr,
                options.lr_head,
                seed=fit.seed,
            )
            module.standardise(*training.scales)
            module.load_state_dict(state, strict=False)
            module.latent_spread.copy_(torch.from_numpy(module.transform(training.x_obs).std(0)))
            found.append(Trained(module.eval(), value, step, training, held))
        return found


def train_pack(fits: Sequence[Fit], training: Training | None = None, restarts: int = 1) -> list[Trained]:
    """Train models, those of equal shapes as one pack.

    Args:
        fits: any.
        training: how; None: the defaults.
        restarts: trainings of each, from other splits, first weights and batches; the smallest held-out cross-entropy wins.

    Returns:
        One of each fit, in their order.

    Raises:
        InputError: for a share, kind or size that does not fit.
        FloatingPointError: a model's cross-entropy never was finite.
    """
    training = training or Training()
    again = [Fit(fit.data, fit.seed + 1009 * restart) for fit in fits for restart in range(restarts)]
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, fit in enumerate(again):
        shape = fit.data.dx, int(fit.data.is_image), *map(len, fit.data.arrays)
        groups.setdefault(shape, []).append(number)
    found: dict[int, Trained] = {}
    for members in groups.values():
        pack = ContrastivePack([again[number] for number in members], training)
        with quiet_lightning():
            make_trainer(training.steps, []).fit(pack)
        found.update(zip(members, pack.cpu().trained(), strict=True))
    if not all(math.isfinite(one.cross_entropy) for one in found.values()):
        raise FloatingPointError("the cross-entropy is not finite; take a smaller lr")
    ordered = [found[number] for number in range(len(again))]
    return [
        min(ordered[start : start + restarts], key=lambda one: one.cross_entropy)
        for start in range(0, len(ordered), restarts)
    ]
