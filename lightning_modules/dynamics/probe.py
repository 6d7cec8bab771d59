"""Probes: callbacks that measure a module while it trains, whatever it is, and stream what they find.

A probe looks at a fixed sample of training examples, with the module in evaluation mode, and leaves the training as it was:
gradients, random numbers and parameters are not touched. It knows what it costs.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_modules.dynamics.flat import check_losses
from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl

Array = np.ndarray


@dataclass(frozen=True)
class ProbeRows:
    """What a probe found at one step.

    Args:
        probe: its name.
        step: parameter updates done.
        series: (quantity, item, value), item e.g. the name of a tensor, or "".
        examples: (quantity, item, numbers of examples [n] int32, values [n] float32), item e.g. the number of a direction.
    """

    probe: str
    step: int
    series: list[tuple[str, str, float]] = field(default_factory=list)
    examples: list[tuple[str, int, Array, Array]] = field(default_factory=list)


Sink = Callable[[ProbeRows], None]
"""Takes rows at once; a probe keeps none of them."""


class Probe(pl.Callback):
    """What probes share. A subclass measures in `begin` (before the first step) and `measure` (after every `every` steps).

    Args:
        every: steps between measurements.
        examples: of the training data, the first ones in their own order, that it looks at.

    Raises:
        InputError: a number below 1.
    """

    name: ClassVar[str]
    needs_losses: ClassVar[bool] = True

    def __init__(self, every: int = 1, examples: int = 1000) -> None:
        for word, value in (("every", every), ("examples", examples)):
            if value < 1:
                raise InputError(f"probe {self.name}: {word} is {value}; give 1 or more")
        self.every, self.count = every, examples
        self.seconds = 0.0
        self.batches: list[Any] = []
        self._sink: Sink | None = None
        self._measured = 0
        self._began = 0.0

    def listen(self, sink: Sink) -> None:
        """Say who takes the rows."""
        self._sink = sink

    def begin(self, trainer: pl.Trainer, module: pl.LightningModule) -> ProbeRows | None:
        """Prepare, and measure what the training begins, or goes on, with."""
        return None

    @abstractmethod
    def measure(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> ProbeRows | None:
        """Measure after a step."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the examples and begin.

        Raises:
            InputError: a module without `per_example_losses`, or one whose parameters are spread over processes.
        """
        if self.needs_losses:
            check_losses(pl_module)
        if type(trainer.strategy).__name__.startswith("FSDP"):
            raise InputError(f"probe {self.name}: needs whole parameters in every process; use --strategy ddp")
        self._began, self._measured = time.perf_counter(), trainer.global_step
        with self._aside(pl_module):
            found = first_batches(trainer, self.count)
            self.batches = [tree_map(_onto(pl_module.device), batch) for batch in found]
            self._give(self.begin(trainer, pl_module))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where it is due."""
        step = trainer.global_step
        if step > self._measured and step % self.every == 0:
            self._measured = step
            with self._aside(pl_module):
                self._give(self.measure(trainer, pl_module, step))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what it cost."""
        whole = max(time.perf_counter() - self._began, 1e-9)
        cost = [("cost_seconds", "", self.seconds), ("cost_share", "", self.seconds / whole)]
        self._give(ProbeRows(self.name, trainer.global_step, cost))

    def losses(self, module: pl.LightningModule) -> Tensor:
        """Losses [n] of the probe's examples now.

        Raises:
            InputError: one of them is not finite.
        """
        with torch.no_grad():
            found = torch.cat([per_example_losses(module, batch) for batch in self.batches])
        bad = (~found.isfinite()).nonzero()
        if len(bad):
            first = int(bad[0])
            raise InputError(
                f"probe {self.name}: the loss of example {first} is {float(found[first])}; lower the learning rate, "
                "or clip gradients"
            )
        return found

    def _give(self, rows: ProbeRows | None) -> None:
        if rows is not None and self._sink is not None:
            self._sink(rows)

    @contextmanager
    def _aside(self, module: pl.LightningModule) -> Iterator[None]:
        """Measure in evaluation mode with random numbers of its own, on the clock."""
        began = time.perf_counter()
        modes = [(part, part.training) for part in module.modules()]
        module.eval()
        try:
            with torch.random.fork_rng(enabled=True), torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            for part, training in modes:
                part.training = training
            self.seconds += time.perf_counter() - began


def per_example_losses(module: nn.Module, batch: Any) -> Tensor:
    """Losses [n] of a batch's examples.

    Raises:
        InputError: the module's method gives something else.
    """
    losses: Any = module.per_example_losses
    found: Any = losses(batch)
    if not isinstance(found, Tensor) or found.dim() != 1:
        what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"per_example_losses: gives {what}; give the loss of every example [n]")
    return found


def first_batches(trainer: pl.Trainer, count: int) -> list[Any]:
    """The first examples of the training data, in their own order, in batches; fewer where there are fewer.

    A data module that has `probe_batches(count)` says itself what to look at.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if hasattr(data, "probe_batches"):
        found: list[Any] = data.probe_batches(count)
        return found
    loader: Any = trainer.train_dataloader
    taken: list[Any] = loader.first_batches(count) if hasattr(loader, "first_batches") else []
    if not taken:
        raise InputError(
            "probe: the training data have no examples of their own; give the data module probe_batches(count)"
        )
    return taken


def learning_rate(trainer: pl.Trainer) -> float:
    """The optimizer's current learning rate, of its first group of parameters; NaN where there is none."""
    groups: Sequence[dict[str, Any]] = trainer.optimizers[0].param_groups if trainer.optimizers else []
    return float(groups[0]["lr"]) if groups else math.nan


def _onto(device: torch.device) -> Callable[[Any], Any]:
    return lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf
