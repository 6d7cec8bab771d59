"""A linear classifier for people who respond to it, as a Lightning module."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_modules.errors import InputError
from lightning_modules.fitting.trainer import make_trainer
from lightning_modules.lightning_import import pl, quiet_lightning
from lightning_modules.stacked import FunctionalStep
from lightning_modules.strategic.cost_sets import CostSet
from lightning_modules.strategic.costs import Array, Cost
from lightning_modules.strategic.responses import accepted, best_response, check_labels, strategic_error
from lightning_modules.strategic.solvers import Problems, Solution, full_batch, stochastic
from lightning_modules.strategic.worst_case import worst_case_error


@dataclass(frozen=True)
class Report:
    """How a classifier does, by who responds and at which cost.

    Args:
        clean: accuracy if nobody responds.
        nominal: under the cost that it is asked about.
        k_min: under the costliest of the set.
        k_max: under the cheapest.
        worst: the smallest over the whole set.
        moved: share of everybody that moves, under the nominal cost.
        paid_by_positives: mean cost that positives pay, under the nominal cost.
    """

    clean: float
    nominal: float
    k_min: float
    k_max: float
    worst: float
    moved: float
    paid_by_positives: float


class StrategicLinearClassifier(pl.LightningModule):
    """Fits sign(w.x + b) to be good after everybody responded at the worst cost of a set.

    Features should be standardised with the training data's mean and spread, since the cost lives in that space; classes
    should be balanced, since lam at the share of positives is then one half.

    Args:
        uncertainty_set: possible costs; a list of one is training against a known cost.
        lam: weight of the dual-norm regularisation; "tau_plus" takes the share of positives, which makes the problem convex
            and the cheapest cost the worst (derived); 0 leaves a real game, not convex, of which this finds a good point.
        solver: "full_batch" or "stochastic".
        radius: bound on ||w||_2 and |b|.
        steps: of the solver.
        batch_size: of the stochastic solver.
        zero_one: whether labels are 0 and 1 instead of -1 and +1.
        seed: of the stochastic solver.
        l2: weight of (l2 / 2) ||w||^2, for comparison; it does not make the problem convex, whatever its size (derived).

    Attributes:
        solution: what the solver found, iterates and averages; None before `fit`.

    Raises:
        InputError: for options out of range.

    Example:
        >>> box = EigenvalueBox(np.eye(30), 0.25, 4.0)  # doctest: +SKIP
        >>> model = StrategicLinearClassifier(box, lam=0.0).fit(inputs, y)  # doctest: +SKIP
        >>> model.report(test_inputs, test_y, nominal).worst  # doctest: +SKIP
    """

    def __init__(
        self,
        uncertainty_set: CostSet,
        lam: float | Literal["tau_plus"] = "tau_plus",
        solver: Literal["full_batch", "stochastic"] = "full_batch",
        radius: float = 10.0,
        steps: int = 600,
        batch_size: int = 16,
        zero_one: bool = False,
        seed: int = 0,
        l2: float = 0.0,
    ) -> None:
        super().__init__()
        if solver not in ("full_batch", "stochastic"):
            raise InputError(f"solver: unknown {solver!r}; choose full_batch or stochastic")
        if lam != "tau_plus" and (isinstance(lam, str) or not 0 <= lam < math.inf):
            raise InputError(f'lam: {lam!r} is no weight; give 0 or more, or "tau_plus"')
        if not 0 <= l2 < math.inf:
            raise InputError(f"l2: {l2} is no weight; give 0 or more")
        if not 0 < radius < math.inf:
            raise InputError(f"radius: {radius} is not above 0; 10 is usual for standardised features")
        if steps < 1 or batch_size < 1:
            raise InputError(f"steps: {steps} and batch_size: {batch_size}; give 1 or more of each")
        self.automatic_optimization = False
        self.uncertainty_set, self.lam, self.solver, self.radius = uncertainty_set, lam, solver, radius
        self.steps, self.batch_size, self.zero_one, self.seed, self.l2 = steps, batch_size, zero_one, seed, l2
        self.solution: Solution | None = None
        self.weight = nn.Parameter(torch.zeros(0, dtype=torch.double))
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.double))

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores [n] of inputs [n, d]."""
        return inputs.double() @ self.weight + self.bias

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Puts in place what the solver found."""
        return FunctionalStep([self.weight, self.bias])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Solve the minimax problem of a batch, which holds all examples."""
        inputs, y = (values.detach().cpu().numpy() for values in batch)
        lam = float((y > 0).mean()) if self.lam == "tau_plus" else float(self.lam)
        costs, l2 = [self.uncertainty_set.training_costs()], np.array([self.l2])
        problems = Problems(inputs, y, costs, np.array([lam]), self.radius, l2)
        if self.solver == "full_batch":
            self.solution = full_batch(problems, self.steps)
        else:
            self.solution = stochastic(problems, self.steps, self.batch_size, [self.seed])
        optimizer: Any = self.optimizers()
        w, b = torch.from_numpy(self.solution.weights[0]), torch.tensor(self.solution.biases[0])
        getattr(optimizer, "optimizer", optimizer).following = [w, b]
        optimizer.step()

    def fit(self, inputs: Array, y: Array) -> StrategicLinearClassifier:
        """Fit to inputs [n, d] and labels [n]; returns itself.

        Raises:
            InputError: for NaN, lengths that differ, other labels, or one class alone.
        """
        inputs, signs = self._checked(inputs, y)
        self.weight.data = torch.zeros(inputs.shape[1], dtype=torch.double)
        with quiet_lightning():
            whole: Any = [(torch.from_numpy(inputs), torch.from_numpy(signs))]
            make_trainer(1, []).fit(self, DataLoader(whole, batch_size=None))
        self.trainer = None  # it holds the examples
        self.eval()
        return self

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make room for the weights of a checkpoint."""
        self.weight.data = torch.zeros_like(checkpoint["state_dict"]["weight"])

    def _checked(self, inputs: Array, y: Array) -> tuple[Array, Array]:
        inputs = np.asarray(inputs, np.float64)
        if inputs.ndim != 2 or len(inputs) != len(y):
            raise InputError(f"y: has {len(y)} labels, inputs are {list(inputs.shape)}; give one label a row")
        if not np.isfinite(inputs).all():
            raise InputError("inputs: hold NaN or infinite numbers; drop those rows")
        return inputs, check_labels(np.asarray(y), self.zero_one)

    def decision_function(self, inputs: Array) -> Array:
        """Scores [n], before anybody moves.

        Raises:
            InputError: inputs of another width than those of `fit`, or before it.
        """
        if np.shape(inputs)[1:] != tuple(self.weight.shape):
            hint = "give the features it was fitted to" if len(self.weight) else "call fit first"
            raise InputError(f"inputs: have shape {list(np.shape(inputs))}, the weights {len(self.weight)}; {hint}")
        found: Array = self(torch.from_numpy(np.asarray(inputs, np.float64))).detach().numpy()
        return found

    def predict(self, inputs: Array, cost: Cost | None = None) -> Array:
        """Labels [n]: of people as they stand, or after they responded at a cost."""
        shift = 0.0 if cost is None else float(cost.shift(self.weight.detach().numpy()))
        signs = np.where(accepted(self.decision_function(inputs), shift), 1, -1)
        found: Array = (signs > 0).astype(np.int64) if self.zero_one else signs
        return found

    def report(self, inputs: Array, y: Array, nominal: Cost | None = None) -> Report:
        """Accuracies under no response, the nominal cost, the extremes of the set, and the worst of it.

        Args:
            inputs: [n, d].
            y: [n].
            nominal: a cost; None takes the set's own.

        Raises:
            InputError: as `fit` and `decision_function`.
        """
        inputs, signs = self._checked(inputs, y)
        scores = self.decision_function(inputs)
        w, b = self.weight.detach().numpy(), float(self.bias.detach())
        costliest, cheapest = self.uncertainty_set.extreme_costs(w)
        nominal = nominal or self.uncertainty_set.nominal()
        _, moved, paid = best_response(inputs, w, b, nominal)

        def accuracy(shift: float) -> float:
            return float((~strategic_error(scores, signs, shift)).mean())

        return Report(
            accuracy(0.0),
            accuracy(float(nominal.shift(w))),
            accuracy(float(costliest.shift(w))),
            accuracy(float(cheapest.shift(w))),
            1 - worst_case_error(inputs, signs, w, b, self.uncertainty_set)[1],
            float(moved.mean()),
            float(paid[signs > 0].mean()),
        )
