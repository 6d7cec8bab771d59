"""What every domain-generalization method is: a Lightning module around one pure objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import IntLogUniform, LogUniform
from lightning_modules.lightning_import import pl
from lightning_modules.networks import Network

State = dict[str, Tensor]


@dataclass(frozen=True)
class Hyperparameters:
    """What every method has; defaults and random laws are DomainBed's for digit-sized inputs.

    Args:
        lr: learning rate of Adam.
        weight_decay: L2 penalty within Adam.
        batch_size: examples per training environment and step.
        network: "auto" takes the dataset's own; or "linear", "mlp", "cnn".
    """

    lr: Annotated[float, LogUniform(10**-4.5, 10**-2.5)] = 1e-3
    weight_decay: float = 0.0
    batch_size: Annotated[int, IntLogUniform(2**3, 2**9)] = 64
    network: str = "auto"

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise InputError(f"hyperparameters: lr is {self.lr}; give a number above 0")
        if self.weight_decay < 0:
            raise InputError(f"hyperparameters: weight_decay is {self.weight_decay}; give 0 or more")
        if self.batch_size < 2:
            raise InputError(f"hyperparameters: batch_size is {self.batch_size}; give 2 or more")


@dataclass(frozen=True)
class Outputs:
    """What a network makes of one mini-batch an environment.

    Args:
        features: [E, B, d].
        logits: [E, B, C].
    """

    features: Tensor
    logits: Tensor


class Method(pl.LightningModule):
    """A Lightning module that minimises `objective` with Adam over one mini-batch an environment.

    Args:
        network: what is trained.
        hyperparameters: an instance of the class's `Hyperparameters`.
        environments: number of training environments, E.

    Raises:
        InputError: when the method needs more environments.
    """

    Hyperparameters: ClassVar[type[Any]] = Hyperparameters
    minimum_environments: ClassVar[int] = 1

    def __init__(self, network: Network, hyperparameters: Any, environments: int) -> None:
        super().__init__()
        if environments < self.minimum_environments:
            raise InputError(
                f"{type(self).__name__}: needs at least {self.minimum_environments} training environments, "
                f"got {environments}; hold out fewer"
            )
        self.network = network
        self.hyperparameters = hyperparameters
        self.state_names: list[str] = []
        for name, value in self.initial_state(hyperparameters, environments).items():
            self.register_buffer(f"state_{name}", value)
            self.state_names.append(name)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.updates: Tensor

    @staticmethod
    def initial_state(hyperparameters: Any, environments: int) -> State:
        """Return what the objective remembers from one step to the next, by name; nothing by default."""
        return {}

    @staticmethod
    def objective(
        outputs: Outputs, labels: Tensor, hyperparameters: Any, state: Mapping[str, Tensor], step: Tensor
    ) -> tuple[Tensor, State]:
        """Compute the loss of one step; a pure function that works under `torch.func.vmap`.

        Args:
            outputs: features [E, B, d] and logits [E, B, C].
            labels: [E, B].
            hyperparameters: an object with the fields of `Hyperparameters`, numbers or scalar tensors.
            state: what the previous step returned.
            step: scalar, number of updates done before this one.

        Returns:
            The loss (scalar) and the next state.
        """
        raise NotImplementedError

    @staticmethod
    def optimizer_reset_step(hyperparameters: Any) -> int | None:
        """Return the step before which Adam forgets its moments, because the loss changes there; None for never."""
        return None

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
        loss, state = self.objective(outputs, labels, self.hyperparameters, state, self.updates)
        for name, value in state.items():
            setattr(self, f"state_{name}", value.detach())
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let Adam forget its moments where the loss changes."""
        if int(self.updates) == self.optimizer_reset_step(self.hyperparameters):
            self.optimizers().optimizer.state.clear()  # type: ignore[union-attr]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the update."""
        self.updates += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as in DomainBed."""
        h = self.hyperparameters
        return torch.optim.Adam(self.network.parameters(), lr=h.lr, weight_decay=h.weight_decay, fused=True)
