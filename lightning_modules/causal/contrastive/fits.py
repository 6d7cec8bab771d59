"""One module trained by itself: what a pack does not do (L-BFGS on all rows, autoencoders, early ends)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from lightning_modules.causal.contrastive.data import GivenData
from lightning_modules.causal.contrastive.environments import InterventionalDataset
from lightning_modules.causal.contrastive.module import ContrastiveCRLModule
from lightning_modules.causal.contrastive.pack import Trained
from lightning_modules.causal.contrastive.recovery import held_out_cross_entropy
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import pl, quiet_lightning

ITERATIONS = 10
"""Of L-BFGS in one step."""


def fit_module(module: pl.LightningModule, data: GivenData, steps: int, check_every: int = 100) -> int:
    """Train a module, validating every `check_every` steps and at the end; returns the steps taken, fewer where its patience ended."""
    last = steps if steps % check_every else None
    with quiet_lightning():
        trainer = make_trainer(
            steps,
            [_Last(last)] if last else [],
            val_check_interval=min(check_every, steps),
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, datamodule=data)
    return int(trainer.global_step)


def fit_linear(data: InterventionalDataset, seed: int = 0, steps: int = 30, eta: float = 0.0) -> Trained:
    """Fit a linear encoder and the head by L-BFGS on all rows at once, ten iterations a step.

    Args:
        data: all of it is trained on: there are few parameters. `held_out` is the same.
        seed: of the first weights.
        steps: of ten iterations.
        eta: weight of |A|.

    Raises:
        FloatingPointError: the cross-entropy never was finite.
    """
    module = ContrastiveCRLModule(data.dx, data.d, "linear", eta=eta, optimizer="lbfgs", seed=seed)
    # L-BFGS can step into NaN where the optimum is flat: what was best before is kept.
    fit_module(module, _whole(data, data), steps, 5)
    return _trained(module, data, data, steps)


def go_on(trained: Trained, steps: int, keep_best: bool, patience: int = 0) -> Trained:
    """Go on from a trained model by L-BFGS on all training rows, ten iterations a step, validating after each.

    Args:
        trained: where it starts; it stays as it is.
        steps: of ten iterations.
        keep_best: whether to come back with the best validation's weights.
        patience: validations without gain that end it; 0: none do.
    """
    options: dict[str, Any] = dict(trained.module.hparams)
    module = ContrastiveCRLModule(**{**options, "optimizer": "lbfgs", "keep_best": keep_best, "patience": patience})
    module.load_state_dict(trained.module.state_dict())
    taken = fit_module(module, _whole(trained.training, trained.held_out), steps, 1)
    found = _trained(module, trained.training, trained.held_out, taken)
    # Where it starts has been validated too.
    return replace(trained, steps=taken) if keep_best and trained.cross_entropy <= found.cross_entropy else found


def _whole(training: InterventionalDataset, held_out: InterventionalDataset) -> GivenData:
    return GivenData(training, held_out, max(map(len, (training.x_obs, *training.x_int))))


def _trained(
    module: ContrastiveCRLModule, training: InterventionalDataset, held_out: InterventionalDataset, steps: int
) -> Trained:
    value = float(np.mean(held_out_cross_entropy(module.cpu().eval(), held_out)))
    if not np.isfinite(value):
        raise FloatingPointError("the cross-entropy is not finite; L-BFGS stepped too far")
    return Trained(module, value, steps, training, held_out)


class _Last(pl.Callback):
    """Sees to a validation at the end where the interval does not."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning validates before it stops."""
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self._steps
