"""Trains a method alone, as a Lightning module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_modules.domain_generalization.method import Method, Outputs, State
from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl
from lightning_modules.networks import Network


class MethodModule(pl.LightningModule):
    """A Lightning module that minimises a method's objective with Adam over one mini-batch an environment.

    Args:
        method: the method's class.
        network: what is trained.
        hyperparameters: an instance of the method's `Hyperparameters`.
        environments: number of training environments, E.

    Raises:
        InputError: when the method needs more environments.
    """

    def __init__(self, method: type[Method], network: Network, hyperparameters: Any, environments: int) -> None:
        super().__init__()
        if environments < method.minimum_environments:
            raise InputError(
                f"{method.__name__}: needs at least {method.minimum_environments} training environments, "
                f"got {environments}; hold out fewer"
            )
        self.method = method
        self.network = network
        self.hyperparameters = hyperparameters
        self.state_names: list[str] = []
        for name, value in method.initial_state(hyperparameters, environments).items():
            self.register_buffer(f"state_{name}", value)
            self.state_names.append(name)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.updates: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits [n, C]."""
        logits: Tensor = self.network(inputs)[1]
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Compute the loss of one step from inputs [E, B, ...] and labels [E, B]."""
        inputs, labels = batch
        features, logits = self.network(inputs.flatten(0, 1))
        outputs = Outputs(features.view(*labels.shape, -1), logits.view(*labels.shape, -1))
        state: State = {name: getattr(self, f"state_{name}") for name in self.state_names}
        loss, state = self.method.objective(outputs, labels, self.hyperparameters, state, self.updates)
        for name, value in state.items():
            setattr(self, f"state_{name}", value.detach())
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let Adam forget its moments where the loss changes."""
        if int(self.updates) == self.method.optimizer_reset_step(self.hyperparameters):
            self.optimizers().optimizer.state.clear()  # type: ignore[union-attr]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the update."""
        self.updates += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as in DomainBed."""
        h = self.hyperparameters
        return torch.optim.Adam(self.network.parameters(), lr=h.lr, weight_decay=h.weight_decay, fused=True)
