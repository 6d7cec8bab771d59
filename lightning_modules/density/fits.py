"""One fit of `ContrastiveEstimator` as a function, for sweeps of step sizes."""

from __future__ import annotations

from typing import Any

from lightning_modules.density.estimator import ContrastiveEstimator
from lightning_modules.density.pairs import NoisePairs
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import quiet_lightning


def fit(module: ContrastiveEstimator, data: NoisePairs, steps: int) -> dict[str, float]:
    """Train and return what the last validation logged, by name; NaN and infinite figures are given as they are.

    Args:
        module: trained in place.
        data: its rows.
        steps: updates.
    """
    with quiet_lightning():
        trainer = make_trainer(steps, [], num_sanity_val_steps=0, limit_val_batches=0)
        trainer.fit(module, datamodule=data)
        check = make_trainer(1, [], num_sanity_val_steps=0)
        found: Any = check.validate(module, datamodule=data, verbose=False)
    return {name: float(value) for name, value in found[0].items()}
