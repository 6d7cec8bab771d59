"""Cells that look at trainings through probes: digits with a signal planted in them, and images as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.claims import MetricRow, scalar_rows
from jobs.papers.opposing_signals.names import CROSSED, FOLLOWED, LATE, MOVED, SCORED, A, B
from lightning_modules.dynamics.curvature import HessianProduct
from lightning_modules.dynamics.flat import FlatParameters, losses_at
from lightning_modules.dynamics.full_batch import FullBatchModule
from lightning_modules.dynamics.full_batch_data import FullBatchData
from lightning_modules.dynamics.lanczos import WarmLanczos
from lightning_modules.dynamics.loss_changes import alternation_rate, opposition_rate
from lightning_modules.dynamics.opposing_probe import OpposingSignalsProbe
from lightning_modules.dynamics.probe import Probe, ProbeRows
from lightning_modules.dynamics.selectors import example_scores
from lightning_modules.dynamics.sharpness_probe import SharpnessProbe
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import pl, quiet_lightning

Settings = Mapping[str, Any]

_ETA, _TOP, _ALL = 0.2, 20, 100_000
_EVERY = 10
"""Steps between looks at the curvature."""
_CLASSES = {A: 3, B: 8}


class _Scores(pl.Callback):
    """Scores examples by other selectors than the change of their loss, at some steps."""

    def __init__(self) -> None:
        self.scores: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Score."""
        if trainer.global_step not in SCORED:
            return
        batch = trainer.datamodule.probe_batches(_ALL)[0]  # type: ignore[attr-defined]
        flat = FlatParameters(pl_module)
        theta = flat.vector()
        with torch.enable_grad():
            top = WarmLanczos()(HessianProduct([losses_at(pl_module, batch)], theta), len(flat))
            self.scores[trainer.global_step] = example_scores(pl_module, batch, top.vectors[0])


class _Block(pl.Callback):
    """Probabilities of the two classes for the signal alone: a plain image."""

    def __init__(self, magnitude: float) -> None:
        self._block = torch.full((1, 64), magnitude / 8)
        self.probabilities: list[tuple[int, str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Look."""
        with torch.no_grad():
            found = pl_module(self._block)[0].softmax(0)
        self.probabilities += [(trainer.global_step, name, float(found[label])) for name, label in _CLASSES.items()]


def _train(module: FullBatchModule, data: FullBatchData, steps: int, *callbacks: pl.Callback) -> list[ProbeRows]:
    """Train, and collect what probes say."""
    found: list[ProbeRows] = []
    for callback in callbacks:
        if isinstance(callback, Probe):
            callback.listen(found.append)
    with quiet_lightning():
        make_trainer(steps, list(callbacks), limit_val_batches=0, num_sanity_val_steps=0).fit(module, datamodule=data)
    return found


def _series(found: Sequence[ProbeRows], quantity: str, item: str = "") -> dict[int, float]:
    """Values of a quantity by step."""
    return {row.step: value for row in found for name, of, value in row.series if (name, of) == (quantity, item)}


def _after(series: Mapping[int, float], step: int) -> list[float]:
    return [value for at, value in series.items() if at >= step]


def _mean(values: Sequence[float]) -> float:
    """NaN of none."""
    return float(np.mean(values)) if values else np.nan


def _known(values: Mapping[str, float]) -> list[MetricRow]:
    return scalar_rows({name: value for name, value in values.items() if np.isfinite(value)})


def planted(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Full-batch descent on digits with a signal planted in two groups of images."""
    data = FullBatchData(mode=method, m=values["m"], magnitude=values["magnitude"], seed=seed)
    data.setup()
    probe = OpposingSignalsProbe(examples=_ALL, top=_TOP, gradients_every=_EVERY)
    probe.watch(data.groups)
    scores, block = _Scores(), _Block(values["magnitude"])
    looks = [SharpnessProbe(_EVERY, _ALL), probe, block, *([scores] if method == "opposing" else [])]
    found = _train(FullBatchModule(lr=_ETA, seed=seed), data, values["steps"], *looks)
    members = torch.cat(list(data.groups.values())).numpy()
    lists = _precisions(found, members)
    first, second = (_series(found, "group_change", name) for name in (A, B))
    moving = {step for step in first if step > CROSSED and min(abs(first[step]), abs(second[step])) > MOVED}
    over = _series(found, "overlap")
    turns = np.diff([p for step, name, p in block.probabilities if name == A and step >= LATE])
    measured = {
        "precision of the risers": _mean([up for step, (up, _) in lists.items() if step > CROSSED]),
        "precision of the fallers": _mean([down for step, (_, down) in lists.items() if step > CROSSED]),
        "precision while groups move": _mean([sum(lists[step]) / 2 for step in moving]),
        "groups oppose": opposition_rate(_after(first, CROSSED + 1), _after(second, CROSSED + 1)),
        "groups alternate": alternation_rate(_after(first, CROSSED + 1)),
        "overlap": _mean(_after(over, CROSSED + 1)),
        "overlap while groups move": _mean([over[step] for step in moving]),
        "fraction up when the loss rises": _up_when_rising(found),
        "cosine of the groups": _mean(_after(_series(found, "cosine", f"{A} {B}"), LATE)),
        "alignment with the sharpest direction": _mean(_after(_series(found, "alignment", A), LATE)),
        "mass of the first layer": _mean(_after(_series(found, "mass", "net.1.weight"), LATE)),
        "plain image alternates": alternation_rate(turns.tolist()),
    }
    rows = _curves(found, (A, B)) + _known(measured)
    rows += [(step, name, "test", "probability of the class", p) for step, name, p in block.probabilities]
    for step, one in scores.scores.items():
        chosen = {name: score.topk(2 * _TOP).indices.numpy() for name, score in one.items()}
        precisions = {name: float(np.isin(numbers, members).mean()) for name, numbers in chosen.items()}
        precisions["change of loss"] = sum(lists[step]) / 2
        rows += [(step, name, "test", "precision", value) for name, value in precisions.items()]
    return rows


def _precisions(found: Sequence[ProbeRows], members: np.ndarray) -> dict[int, tuple[float, float]]:
    """Shares of the planted examples in the lists of risers and of fallers, by step."""
    return {
        row.step: (float(np.isin(numbers[:_TOP], members).mean()), float(np.isin(numbers[_TOP:], members).mean()))
        for row in found
        for quantity, _, numbers, _ in row.examples
        if quantity == "loss_change"
    }


def _up_when_rising(found: Sequence[ProbeRows]) -> float:
    """Share of all examples whose losses rise on steps at which the mean loss does."""
    loss, fraction = _series(found, "loss_change"), _series(found, "fraction_up")
    return _mean([fraction[step] for step, change in loss.items() if change > 0 and step > CROSSED])


def _curves(found: Sequence[ProbeRows], groups: Sequence[str]) -> list[MetricRow]:
    """Loss, sharpness times eta / 2, and the groups' losses, by step."""
    curves = {("loss", ""): _series(found, "loss"), ("sharpness over 2/eta", ""): _series(found, "threshold_ratio")}
    curves |= {("group loss", name): _series(found, "group_loss", name) for name in groups}
    return [
        (step, name, "test", metric, value) for (metric, name), curve in curves.items() for step, value in curve.items()
    ]


def natural(method: str, seed: int, values: Settings) -> list[MetricRow]:
    """Full-batch descent on squared loss with nothing planted: groups are those that the change of losses finds.

    Squared loss stays at the edge of stability, where cross-entropy's sharpness decays. The groups of one step are then followed:
    that they oppose each other at that step is how they are chosen, that they go on to is not.
    """
    data = FullBatchData(source=method, seed=seed)
    module = FullBatchModule(inputs=784 if method == "MNIST" else 64, loss="squared", lr=values["lr"], seed=seed)
    probe = OpposingSignalsProbe(examples=_ALL, top=_TOP, rows="all", gradients_every=_EVERY)
    chosen: dict[str, Tensor] = {}
    labels: dict[str, int] = {}

    class Choose(pl.Callback):
        """Keeps the groups of one step."""

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == LATE and probe.groups is not None:
                chosen.update(probe.groups.by_name())
                labels.update(zip(chosen, probe.groups.labels, strict=True))

    found = _train(module, data, values["steps"], SharpnessProbe(_EVERY, _ALL), probe, Choose())
    followed = [
        [
            float(v[chosen[name]].mean())
            for row in found
            for q, _, _, v in row.examples
            if q == "loss_change" and _in(row)
        ]
        for name in chosen
    ]
    rows = _curves(found, "AB")
    if len(followed) == 2:
        first, second = followed
        rows += scalar_rows({"groups oppose": opposition_rate(first, second), "alternate": alternation_rate(first)})
        rows += [(LATE, name, "test", "label", float(label)) for name, label in labels.items()]
    measured = {
        "overlap": _mean(_after(_series(found, "overlap"), LATE)),
        "fraction up when the loss rises": _up_when_rising(found),
        "fraction up": _mean(_after(_series(found, "fraction_up"), LATE)),
        "cosine of the groups": _mean(_after(_series(found, "cosine", "A B"), LATE)),
        "alignment with the sharpest direction": _mean(_after(_series(found, "alignment", "A"), LATE)),
        "mass of the first layer": _mean(_after(_series(found, "mass", "net.1.weight"), LATE)),
    }
    return rows + _known(measured)


def _in(row: ProbeRows) -> bool:
    return LATE < row.step <= LATE + FOLLOWED
