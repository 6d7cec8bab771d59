"""POLCA while a module trains: which examples' losses move along which directions of the weights, and when."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_modules.dynamics.curvature import HessianProduct
from lightning_modules.dynamics.flat import FlatParameters, LossesAt, losses_at, projected_gradients
from lightning_modules.dynamics.hessian_basis import next_directions
from lightning_modules.dynamics.probe import Probe, ProbeRows
from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl


class BreakthroughsProbe(Probe):
    """A(x, b) = 1/2 <b, g_s(x) + g_t(x)> <b, theta_t - theta_s> of every example x and direction b, over each interval s to t.

    Directions are grown while the module trains: before the first step and then at every `basis_every` steps, the top eigenvector
    of the Hessian (of the mean loss over the probe's examples) in what the directions so far leave; a direction counts from the
    interval after it on. Held are the directions and their examples' derivatives, K x D + K x n numbers, and the weights of the last
    measurement; rows are given away at once.

    Rows: examples' "change_along" by number of the direction; series "change_along" (its mean, by direction), "captured" (over all
    directions) beside "total" (true change of the mean loss), both of the interval, "captured_share" (of the change since the
    beginning), and at a new direction its "eigenvalue".

    Args:
        every: steps between measurements.
        examples: of the training data that it looks at.
        basis_every: steps between new directions, a multiple of `every`.
        directions: K, at most.

    Raises:
        InputError: a number below 1, or `basis_every` no multiple of `every`.

    Source: arXiv 2506.15872, with the trapezoid rule for its second order.
    """

    name: ClassVar[str] = "breakthroughs"

    def __init__(self, every: int = 20, examples: int = 500, basis_every: int = 200, directions: int = 10) -> None:
        super().__init__(every, examples)
        if directions < 1:
            raise InputError(f"probe {self.name}: directions is {directions}; give 1 or more")
        if basis_every < 1 or basis_every % every:
            raise InputError(
                f"probe {self.name}: basis_every is {basis_every}; give a multiple of every, which is {every}"
            )
        self.basis_every, self.directions = basis_every, directions
        self._kept: dict[str, Any] | None = None
        self._losses: list[LossesAt] = []

    def begin(self, trainer: pl.Trainer, module: pl.LightningModule) -> ProbeRows | None:
        """Find the first direction; or go on with those of a training that is continued.

        Raises:
            InputError: the module is another than that of the training that is continued.
        """
        self._losses = [losses_at(module, batch) for batch in self.batches]
        theta = FlatParameters(module).vector()
        if self._kept is not None:
            self._go_on(self._kept, theta)
            self._kept = None
            return None
        self._theta = theta
        self._vectors, self._derivatives = theta.new_empty(0, len(theta)), theta.new_empty(0, 0)
        self._loss = self._first_loss = float(self.losses(module).double().mean())
        self._captured = 0.0
        rows = ProbeRows(self.name, trainer.global_step)
        self._grow(rows, module)
        return rows

    def measure(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> ProbeRows:
        """Take the interval's change apart, and add a direction where it is due."""
        rows = ProbeRows(self.name, step)
        theta = FlatParameters(module).vector()
        loss = float(self.losses(module).double().mean())
        derivatives = self._along(module, self._vectors)
        moved = self._vectors @ (theta - self._theta)
        changes = (0.5 * (self._derivatives + derivatives) * moved[:, None]).float().cpu().numpy()
        numbers = np.arange(changes.shape[1], dtype=np.int32)
        captured = 0.0
        for direction, change in enumerate(changes):
            rows.examples.append(("change_along", direction, numbers, change))
            mean = float(change.mean(dtype=np.float64))
            rows.series.append(("change_along", str(direction), mean))
            captured += mean
        self._captured += captured
        whole = loss - self._first_loss
        share = self._captured / whole if whole else math.nan
        rows.series.extend(
            [("captured", "", captured), ("total", "", loss - self._loss), ("captured_share", "", share)]
        )
        self._theta, self._loss, self._derivatives = theta, loss, derivatives
        if step % self.basis_every == 0:
            self._grow(rows, module)
        return rows

    def _grow(self, rows: ProbeRows, module: pl.LightningModule) -> None:
        """Add the top direction of the Hessian here, if there is room for one."""
        count, size = self._vectors.shape
        if count >= min(self.directions, size):
            return
        product = HessianProduct(self._losses, self._theta)
        found, values, _ = next_directions(product, self._vectors, seed=count)
        added = self._along(module, found)
        self._vectors = torch.cat([self._vectors, found])
        self._derivatives = torch.cat([self._derivatives, added]) if count else added
        rows.series.append(("eigenvalue", str(count), float(values[0])))

    def _along(self, module: pl.LightningModule, directions: Tensor) -> Tensor:
        return torch.cat([projected_gradients(module, batch, directions) for batch in self.batches], 1)

    def _settings(self) -> dict[str, int]:
        return {
            "every": self.every,
            "examples": self.count,
            "basis_every": self.basis_every,
            "directions": self.directions,
        }

    def state_dict(self) -> dict[str, Any]:
        """Directions, derivatives and weights, with which a continued training gives the same rows."""
        if self._kept is not None:
            return self._kept
        if not self._losses:
            return {}
        return {
            "settings": self._settings(),
            "theta": self._theta.cpu(),
            "vectors": self._vectors.cpu(),
            "derivatives": self._derivatives.cpu(),
            "loss": self._loss,
            "first_loss": self._first_loss,
            "captured": self._captured,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them.

        Raises:
            InputError: they were found with other settings.
        """
        if not state_dict:
            return
        if state_dict["settings"] != self._settings():
            before = ",".join(f"{name}={value}" for name, value in state_dict["settings"].items())
            raise InputError(f"probe {self.name}: the training began with {before}; go on with the same")
        self._kept = state_dict

    def _go_on(self, state: dict[str, Any], theta: Tensor) -> None:
        if len(state["theta"]) != len(theta):
            raise InputError(
                f"probe {self.name}: the training began with {len(state['theta'])} parameters, the module has {len(theta)}; "
                "go on with the same module"
            )
        self._theta, self._vectors, self._derivatives = (
            state[name].to(theta) for name in ("theta", "vectors", "derivatives")
        )
        self._loss, self._first_loss, self._captured = state["loss"], state["first_loss"], state["captured"]
