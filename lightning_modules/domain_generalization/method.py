"""What a domain-generalization method is: hyperparameters and one pure objective. `module.py` trains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import IntLogUniform, LogUniform

State = dict[str, Tensor]


@dataclass(frozen=True)
class Hyperparameters:
    """What every method has; defaults and random laws are DomainBed's for digit-sized inputs.

    Args:
        lr: learning rate of Adam.
        weight_decay: L2 penalty within Adam.
        batch_size: examples per training environment and step.
        network: "auto" takes the dataset's own; or "linear", "mlp", "small-cnn", "cnn".
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
class Shapes:
    """Sizes that a method's state and random numbers depend on.

    Args:
        environments: training environments, E.
        batch: examples per environment and step, B.
        features: width of the last layer, d.
        classes: number of classes, C.
    """

    environments: int
    batch: int
    features: int
    classes: int


@dataclass(frozen=True)
class Outputs:
    """What a network makes of one mini-batch an environment, and the step's random numbers.

    Args:
        features: [E, B, d], the last hidden layer.
        logits: [E, B, C] = features W' + b.
        weight: W [C, d] of the classifier.
        bias: b [C] of the classifier.
        layers: hidden layers [E, B, d_l] from first to last; the last one is `features`.
        noise: what `Method.noise` drew for this step.
    """

    features: Tensor
    logits: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    layers: tuple[Tensor, ...] = ()
    noise: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """One mini-batch an environment: inputs [E, B, ...], labels [E, B], and the step's random numbers."""

    inputs: Tensor
    labels: Tensor
    noise: Mapping[str, Tensor]


Parameters = Mapping[str, Tensor]
Model = Callable[[Parameters, Tensor], tuple[tuple[Tensor, ...], Tensor]]
"""Computes (hidden layers [n, d_l], logits [n, C]) of one network from its parameters and inputs [n, ...]."""


@dataclass(frozen=True)
class Readings:
    """What a readout may use beside the features.

    Args:
        labels: [N]; those of rows that are not trained on must not be used.
        training: rows of each training environment's "in" split.
        everywhere: rows of each environment, in the dataset's order.
        unlabelled: rows of each environment's "in" split, in the dataset's order.
        classes: number of classes.
        trained: for each environment of the dataset whether it is trained on.
    """

    labels: Tensor
    training: tuple[Tensor, ...]
    everywhere: tuple[Tensor, ...]
    unlabelled: tuple[Tensor, ...]
    classes: int
    trained: tuple[bool, ...]


class Method:
    """A method: what `MethodModule` trains alone and `Pack` trains many at a time. Nothing here imports Lightning.

    Most methods are an `objective`. One whose step is more than Adam on a loss gives `update` instead, one that fits
    its classifier after training gives `readout` too.
    """

    Hyperparameters: ClassVar[type[Any]] = Hyperparameters
    minimum_environments: ClassVar[int] = 1
    structural: ClassVar[tuple[str, ...]] = ()
    """Numeric hyperparameters that decide shapes: equal in all members of a pack, and plain numbers there."""
    networks: ClassVar[tuple[str, ...]] = ("linear", "mlp", "small-cnn", "cnn")
    """Networks it can train."""

    @staticmethod
    def initial_state(
        hyperparameters: Any, shapes: Shapes, parameters: Parameters, generator: torch.Generator
    ) -> State:
        """Return what the method remembers from one step to the next, by name; nothing by default."""
        return {}

    @staticmethod
    def noise(generator: np.random.Generator, shapes: Shapes, hyperparameters: Any) -> dict[str, Tensor]:
        """Draw a step's random numbers, by name; nothing by default."""
        return {}

    @staticmethod
    def augment(inputs: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """Change the inputs [E, B, ...] before the network sees them; not by default."""
        return inputs

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
    def update(
        model: Model,
        parameters: Parameters,
        batch: Batch,
        hyperparameters: Any,
        state: Mapping[str, Tensor],
        step: Tensor,
    ) -> tuple[Parameters, State]:
        """Do one step that is more than Adam on one loss; a pure function that works under `torch.func.vmap`.

        Args:
            model: computes (layers, logits).
            parameters: of the network, by name.
            batch: inputs, labels and random numbers.
            hyperparameters: as for `objective`.
            state: what `initial_state` returned, with what later steps returned put over it.
            step: scalar, number of updates done before this one.

        Returns:
            The network's next parameters, and what of the state changes.
        """
        raise NotImplementedError

    @staticmethod
    def readout(features: Tensor, readings: Readings, hyperparameters: Any) -> Tensor:
        """Fit the classifier anew for an evaluation; returns logits [N, C] from features [N, d] of all examples."""
        raise NotImplementedError

    @classmethod
    def gives(cls, part: str) -> bool:
        """Whether the method has an `update`, `readout` or `noise` of its own."""
        return getattr(cls, part) is not getattr(Method, part)

    @staticmethod
    def optimizer_reset_step(hyperparameters: Any) -> int | None:
        """Return the step before which Adam forgets its moments, because the loss changes there; None for never."""
        return None

    @staticmethod
    def learning_rate_after_reset(hyperparameters: Any) -> float:
        """Return Adam's learning rate from the reset on."""
        return float(hyperparameters.lr)
