"""Optimizers on mini-batches, with opposing signals in the images and without."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import torch

from jobs.claims import MetricRow
from jobs.papers.opposing_signals.names import RATES
from lightning_modules.dynamics.full_batch import FullBatchModule
from lightning_modules.dynamics.full_batch_data import FullBatchData

_KINDS = {"SGD": "gd", "Adam": "adam", "sign-SGD": "sign_sgd", "SplitSGD": "split_sgd"}
_BATCH, _LAST, _DRAWN = 128, 20, 20


def optimizers(method: str, seed: int, values: Mapping[str, Any]) -> list[MetricRow]:
    """Loss over all training images along every setting of an optimizer, and its mean over the last steps.

    A plain loop: a step takes a third of a millisecond, to which a trainer would add twice as much.
    """
    rows: list[MetricRow] = []
    for extra, lr in RATES[method]:
        how: dict[str, Any] = {"lr": lr, "momentum": float(extra or 0)}
        if method == "SplitSGD":
            how = {"lr": lr, "sign_lr": float(extra), "momentum": 0.9, "dampening": 0.9}
        data = FullBatchData(mode=values["mode"], batch_size=_BATCH, seed=seed)
        data.setup()
        curve = _descend(FullBatchModule(optimizer=_KINDS[method], seed=seed, **how), data, values["steps"])
        setting = f"{extra} {lr:g}".strip()
        final = float(np.mean([loss for step, loss in curve.items() if step > values["steps"] - _LAST]))
        if np.isfinite(final):
            rows.append((0, setting, "test", "final", final))
            rows += [(step, setting, "test", "loss", loss) for step, loss in curve.items() if step % _DRAWN == 0]
    return rows


def _descend(module: FullBatchModule, data: FullBatchData, steps: int) -> dict[int, float]:
    """Mean loss over all examples by step, at some steps and at each of the last."""
    optimizer, curve = module.configure_optimizers(), {}
    whole = data.probe_batches(len(data.train))[0]
    batches = islice(chain.from_iterable(repeat(data.train_dataloader())), steps)
    for step, batch in enumerate(batches, 1):
        optimizer.zero_grad()
        module.per_example_losses(batch).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step > steps - _LAST or step % _DRAWN == 0:
            with torch.no_grad():
                curve[step] = float(module.per_example_losses(whole).mean())
    return curve
