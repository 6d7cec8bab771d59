"""Trains a method alone, as a Lightning module."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.domain_generalization.method import Batch, Method, Outputs, Shapes, State
from lightning_modules.errors import InputError
from lightning_modules.lightning_import import pl
from lightning_modules.networks import Network
from lightning_modules.stacked import FunctionalStep


class MethodModule(pl.LightningModule):
    """A Lightning module that trains a network by a method, on one mini-batch an environment.

    Args:
        method: the method's class.
        network: what is trained.
        hyperparameters: an instance of the method's `Hyperparameters`.
        shapes: sizes of the mini-batches and of the network's end.
        seed: of what the method itself draws, before and during training.

    Raises:
        InputError: when the method needs more environments.
    """

    def __init__(
        self, method: type[Method], network: Network, hyperparameters: Any, shapes: Shapes, seed: int = 0
    ) -> None:
        super().__init__()
        if shapes.environments < method.minimum_environments:
            raise InputError(
                f"{method.__name__}: needs at least {method.minimum_environments} training environments, "
                f"got {shapes.environments}; hold out fewer"
            )
        self.method = method
        self.network = network
        self.hyperparameters = hyperparameters
        self.shapes = shapes
        self.noise_generator = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        parameters = {name: value.detach() for name, value in network.named_parameters()}
        self.state_names: list[str] = []
        for name, value in method.initial_state(hyperparameters, shapes, parameters, generator).items():
            self.register_buffer(_buffer(name), value)
            self.state_names.append(name)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.updates: Tensor

    @property
    def state(self) -> State:
        """What the method remembers, by name."""
        return {name: getattr(self, _buffer(name)) for name in self.state_names}

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits [n, C]."""
        logits: Tensor = self.network(inputs)[1]
        return logits

    def noise(self) -> dict[str, Tensor]:
        """Draw the step's random numbers."""
        drawn = self.method.noise(self.noise_generator, self.shapes, self.hyperparameters)
        return {name: value.to(self.device) for name, value in drawn.items()}

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor | None:
        """Compute the loss of one step from inputs [E, B, ...] and labels [E, B], or the whole step."""
        inputs, labels = batch
        noise = self.noise()
        if self.method.gives("update"):
            self._update(Batch(inputs, labels, noise))
            return None
        layers, logits = self.network(self.method.augment(inputs, noise).flatten(0, 1))
        layers = tuple(layer.view(*labels.shape, -1) for layer in layers)
        classifier = self.network.classifier
        outputs = Outputs(layers[-1], logits.view(*labels.shape, -1), classifier.weight, classifier.bias, layers, noise)
        loss, state = self.method.objective(outputs, labels, self.hyperparameters, self.state, self.updates)
        self._remember(state)
        return loss

    def _update(self, batch: Batch) -> None:
        parameters = {name: value.detach() for name, value in self.network.named_parameters()}

        def model(parameters: Any, inputs: Tensor) -> Any:
            return torch.func.functional_call(self.network, dict(parameters), (inputs,))

        with torch.no_grad():
            moved, state = self.method.update(model, parameters, batch, self.hyperparameters, self.state, self.updates)
        self.functional_step.following = [moved[name] for name in parameters]
        self._remember(state)

    def _remember(self, state: State) -> None:
        for name, value in state.items():
            setattr(self, _buffer(name), value.detach())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let Adam forget its moments where the loss changes."""
        if int(self.updates) == self.method.optimizer_reset_step(self.hyperparameters):
            optimizer = self.optimizers().optimizer  # type: ignore[union-attr]
            optimizer.state.clear()
            for group in optimizer.param_groups:
                group["lr"] = self.method.learning_rate_after_reset(self.hyperparameters)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the update."""
        self.updates += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as in DomainBed, or the method's own step."""
        if self.method.gives("update"):
            self.functional_step = FunctionalStep(list(self.network.parameters()))
            return self.functional_step
        h = self.hyperparameters
        return torch.optim.Adam(self.network.parameters(), lr=h.lr, weight_decay=h.weight_decay, fused=True)


def _buffer(name: str) -> str:
    return "state_" + name.replace(".", "_").replace(" ", "_")
