"""Probe `opposing-signals`: whose losses a step moves most, up and down, and the two groups that take turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.dynamics.curvature import HessianProduct
from lightning_modules.dynamics.flat import FlatParameters, losses_at
from lightning_modules.dynamics.groups import OutlierGroups, group_statistics, labels_of, outlier_groups
from lightning_modules.dynamics.lanczos import WarmLanczos
from lightning_modules.dynamics.loss_changes import LossChangeTracker, OutlierReport, overlap
from lightning_modules.dynamics.probe import Probe, ProbeRows
from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl

_BEFORE = 2
"""Steps that are looked at before a measurement: two changes in a row need the losses of three steps."""


class OpposingSignalsProbe(Probe):
    """Changes of every example's loss over single steps; the outliers among them, in two groups, by the change alone.

    Series: mean `loss` and `loss_change`, `fraction_up` of the examples, `overlap` of the last step's risers with this one's
    fallers, and of groups "A" and "B" (see `outlier_groups`): `group_loss`, `group_change`, `group_size`, `group_label`. These
    are the groups that the step BEFORE has made: that the step which makes them moves them apart is no finding. With
    `gradients_every` also the `cosine` of the groups' mean gradients, and the `alignment` of each with the sharpest direction.
    Groups that `watch` was given have `group_loss`, `group_change`, `cosine` and `alignment` too, under their names.

    Examples: `loss` and `loss_change`, of all or of the outliers.

    A measurement costs one forward pass where every step is measured, else three: changes are always those of one step.

    Args:
        every: steps between measurements.
        examples: of the training data that it looks at.
        top: examples in each list, of the most up and of the most down.
        rows: whose rows are given: "top", the outliers', or "all".
        gradients_every: steps between looks at the gradients, a multiple of `every`; 0: none.

    Raises:
        InputError: a value out of range.

    Source: arXiv 2311.04163.
    """

    name = "opposing-signals"

    def __init__(
        self, every: int = 1, examples: int = 1000, top: int = 20, rows: str = "top", gradients_every: int = 0
    ) -> None:
        super().__init__(every, examples)
        if rows not in ("all", "top"):
            raise InputError(f"probe {self.name}: rows is {rows!r}; choose from all, top")
        if gradients_every < 0 or gradients_every % every:
            raise InputError(f"probe {self.name}: gradients_every is {gradients_every}; give 0 or a multiple of every")
        self.tracker = LossChangeTracker(top)
        self.rows, self.gradients_every = rows, gradients_every
        self.groups: OutlierGroups | None = None
        self._before: OutlierGroups | None = None
        self._watched: dict[str, Tensor] = {}
        self._sharpest = WarmLanczos()
        self._rising: Tensor | None = None
        self._report: OutlierReport | None = None
        self._overlap: float | None = None
        self._losses = torch.empty(0)
        self._seen = -1

    def watch(self, groups: Mapping[str, Tensor]) -> None:
        """Follow groups of examples that are known, by their numbers, beside those that it finds itself.

        Raises:
            InputError: a group named A or B.
        """
        for name in groups:
            if name in ("A", "B"):
                raise InputError(f"groups: {name} is the name of a group that is found; choose another")
        self._watched = dict(groups)

    def begin(self, trainer: pl.Trainer, module: pl.LightningModule) -> ProbeRows | None:
        """Look at the losses a training begins with; one that goes on may know them."""
        step = trainer.global_step
        if 0 <= self._seen < step and step % self.every == 0:
            return self.measure(trainer, module, step)
        if self._seen < step:
            self._look(module, step)
        return None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look where a measurement is near, and measure where it is due."""
        step = trainer.global_step
        if step > self._seen and -step % self.every in range(1, _BEFORE + 1):
            with self._aside(pl_module):
                self._look(pl_module, step)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def measure(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> ProbeRows | None:
        """Measure after a step."""
        if step > self._seen:
            self._look(module, step)
        report = self._report
        if report is None:
            return None
        series = [("loss", "", float(self._losses.double().mean()))]
        series += [("loss_change", "", float(report.change.double().mean())), ("fraction_up", "", report.fraction_up)]
        if self._overlap is not None:
            series.append(("overlap", "", self._overlap))
        found = {} if self._before is None else self._before.by_name()
        for name, members in (found | self._watched).items():
            series.append(("group_loss", name, float(self._losses[members].double().mean())))
            series.append(("group_change", name, float(report.change[members].double().mean())))
        series += [("group_size", name, float(len(members))) for name, members in found.items()]
        if self._before is not None and self._before.labels != (-1, -1):
            series += [("group_label", n, float(label)) for n, label in zip("AB", self._before.labels, strict=True)]
        if self.gradients_every and step % self.gradients_every == 0:
            series += self._gradients(module, found)
        return ProbeRows(self.name, step, series, self._examples(report))

    def _look(self, module: pl.LightningModule, step: int) -> None:
        """Take the losses after a step."""
        self._losses = self.losses(module)
        self._report, self._seen, self._overlap = self.tracker.update(self._losses, step), step, None
        rising, self._rising = self._rising, None
        if self._report is not None:
            self._overlap = overlap(rising, self._report.down) if rising is not None else None
            self._rising = self._report.up
            self._before, self.groups = self.groups, outlier_groups(self._report, labels_of(self.batches), self.groups)

    def _gradients(self, module: pl.LightningModule, found: dict[str, Tensor]) -> list[tuple[str, str, float]]:
        flat = FlatParameters(module)
        theta = flat.vector()
        losses = [losses_at(module, batch) for batch in self.batches]
        top = self._sharpest(HessianProduct(losses, theta), len(flat), theta.device, theta.dtype)
        series = []
        for groups in (found, self._watched):
            if not groups:
                continue
            measured = group_statistics(losses, theta, groups, top.vectors[0])
            names = list(groups)
            for i, name in enumerate(names):
                series.append(("alignment", name, float(measured.alignment[i])))
                series += [
                    ("cosine", f"{name} {other}", float(measured.cosine[i, j]))
                    for j, other in enumerate(names)
                    if i < j
                ]
        return series

    def _examples(self, report: OutlierReport) -> list[tuple[str, int, np.ndarray, np.ndarray]]:
        losses, change = self._losses.float().cpu().numpy(), report.change.float().cpu().numpy()
        numbers = np.arange(len(losses), dtype=np.int32)
        if self.rows == "top":
            numbers = torch.cat([report.up, report.down]).cpu().numpy().astype(np.int32)
        return [("loss", 0, numbers, losses[numbers]), ("loss_change", 0, numbers, change[numbers])]

    def state_dict(self) -> dict[str, Any]:
        """The last losses, risers, groups and sharpest direction, so that a training that goes on gives the same rows."""
        groups = self.groups and (self.groups.first, self.groups.second, self.groups.labels)
        return {
            "tracker": self.tracker.state_dict(),
            "rising": self._rising,
            "groups": groups,
            "sharpest": self._sharpest.start,
            "seen": self._seen,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.tracker.load_state_dict(state_dict["tracker"])
        self._rising, self._sharpest.start = state_dict["rising"], state_dict["sharpest"]
        self.groups = OutlierGroups(*state_dict["groups"]) if state_dict["groups"] else None
        self._seen = int(state_dict["seen"])
