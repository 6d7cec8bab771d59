"""What a domain-generalization method is: hyperparameters and one pure objective. `module.py` trains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

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


class Method:
    """A method: what `MethodModule` trains alone and `Pack` trains many at a time. Nothing here imports Lightning."""

    Hyperparameters: ClassVar[type[Any]] = Hyperparameters
    minimum_environments: ClassVar[int] = 1

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
