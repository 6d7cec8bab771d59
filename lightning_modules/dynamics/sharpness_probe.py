"""Probe `sharpness`: the Hessian's top eigenvalues while a module trains, beside what the step size allows."""

from __future__ import annotations

from typing import Any

from lightning_modules.dynamics.curvature import HessianProduct
from lightning_modules.dynamics.flat import FlatParameters, losses_at
from lightning_modules.dynamics.lanczos import WarmLanczos
from lightning_modules.dynamics.probe import Probe, ProbeRows
from lightning_modules.dynamics.sharpness import stability_threshold
from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl


class SharpnessProbe(Probe):
    """Top eigenvalues of the Hessian of the mean loss of the probe's examples, in evaluation mode.

    Series: `sharpness` and `residual` of eigenvalue "1", "2", ... (the largest by value first), `threshold` above which the
    optimizer's steps grow on a quadratic (NaN where none is known, as of Adam) and `threshold_ratio` of the two, `products`
    with the Hessian that it took, and `mass`, each parameter tensor's share of the first eigenvector's squared length.

    Six products with the Hessian a measurement are usual, each of two or three gradients' cost: every measurement starts from the
    last one's eigenvectors.

    Args:
        every: steps between measurements.
        examples: of the training data that it looks at; with fewer than all of them it is those examples' sharpness.
        eigenvalues: how many.

    Raises:
        InputError: a number below 1.
    """

    name = "sharpness"

    def __init__(self, every: int = 10, examples: int = 1000, eigenvalues: int = 1) -> None:
        super().__init__(every, examples)
        if eigenvalues < 1:
            raise InputError(f"probe {self.name}: eigenvalues is {eigenvalues}; give 1 or more")
        self.top = WarmLanczos(eigenvalues)
        self._seen = -1

    def begin(self, trainer: pl.Trainer, module: pl.LightningModule) -> ProbeRows | None:
        """Measure what a training begins with; one that goes on may have measured already."""
        step = trainer.global_step
        due = self._seen < 0 or (self._seen < step and step % self.every == 0)
        return self.measure(trainer, module, step) if due else None

    def measure(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> ProbeRows:
        """Measure after a step."""
        flat = FlatParameters(module)
        if len(flat) < self.top.k:
            raise InputError(
                f"probe {self.name}: eigenvalues is {self.top.k}, the module has {len(flat)} parameters; give fewer"
            )
        self.losses(module)  # refuses what is not finite, and says which example it is
        theta = flat.vector()
        product = HessianProduct([losses_at(module, batch) for batch in self.batches], theta)
        found = self.top(product, len(flat), theta.device, theta.dtype)
        self._seen = step
        threshold = stability_threshold(trainer.optimizers[0] if len(trainer.optimizers) == 1 else None)
        values = found.values.tolist()
        series = [("sharpness", str(place), value) for place, value in enumerate(values, 1)]
        series += [("residual", str(place), value) for place, value in enumerate(found.residuals.tolist(), 1)]
        series += [("threshold", "", threshold), ("threshold_ratio", "", values[0] / threshold)]
        series += [("products", "", float(self.top.products))]
        series += [("mass", name, share) for name, share in flat.mass(found.vectors[0]).items()]
        return ProbeRows(self.name, step, series)

    def state_dict(self) -> dict[str, Any]:
        """Where the next measurement starts, so that a training that goes on gives the same rows."""
        return {"start": self.top.start, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.top.start, self._seen = state_dict["start"], int(state_dict["seen"])
