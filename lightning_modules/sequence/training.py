"""How decoders are trained, whatever their task: AdamW under a warm-up, checks of its numbers, and a training in place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import pl, quiet_lightning
from lightning_modules.sequence.schedules import adamw, lightning_schedule, warmup_schedule


def check_numbers(positive: Mapping[str, float], not_negative: Mapping[str, float]) -> None:
    """Refuse hyperparameters that are out of range.

    Args:
        positive: by name, those that must be finite and above 0.
        not_negative: those that must be finite and 0 or more.

    Raises:
        InputError: names the first of them.
    """
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name}: is {value}; give a number above 0")
    for name, value in not_negative.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name}: is {value}; give 0 or more")


def warmed_up(module: pl.LightningModule) -> dict[str, Any]:
    """What `configure_optimizers` gives: AdamW with a schedule over the training's steps.

    Args:
        module: its hyperparameters have lr, weight_decay, warmup (steps), final_share and schedule.
    """
    options: Any = module.hparams
    steps = max(1, int(module.trainer.max_steps))
    optimizer = adamw(module, options["lr"], options["weight_decay"])
    warmup = min(options["warmup"], steps)
    schedule = warmup_schedule(optimizer, warmup, steps, options["final_share"], options["schedule"])
    return {"optimizer": optimizer, "lr_scheduler": lightning_schedule(schedule)}


def fit(
    module: pl.LightningModule, data: pl.LightningDataModule, steps: int, callbacks: Sequence[pl.Callback] = ()
) -> None:
    """Train in place, without validation.

    Args:
        module: what is trained; it is on the CPU afterwards.
        data: what it learns.
        steps: parameter updates.
        callbacks: that watch.

    Raises:
        InputError: steps below 1.
    """
    if steps < 1:
        raise InputError(f"steps: is {steps}; give 1 or more")
    with quiet_lightning():
        trainer = make_trainer(steps, list(callbacks), num_sanity_val_steps=0, limit_val_batches=0)
        trainer.fit(module, datamodule=data)
    module.cpu()
