"""A module's trainable parameters as one vector, and its examples' losses as a function of that vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.errors import InputError

LossesAt = Callable[[Tensor], Tensor]
"""Maps parameters [D] to losses [n] of fixed examples."""


class FlatParameters:
    """The trainable parameters of a module in one order; tied ones count once.

    Args:
        module: whose parameters.

    Raises:
        InputError: there is none.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise InputError(f"module: {type(module).__name__} has no trainable parameters; give one that learns")
        self.shapes = {name: p.shape for name, p in self._parameters.items()}
        self.sizes = {name: p.numel() for name, p in self._parameters.items()}

    def __len__(self) -> int:
        """D."""
        return sum(self.sizes.values())

    @property
    def names(self) -> list[str]:
        """Of the tensors, in order."""
        return list(self.sizes)

    def vector(self) -> Tensor:
        """A copy of the parameters [D]."""
        return torch.cat([p.detach().flatten() for p in self._parameters.values()])

    def tensors(self) -> list[nn.Parameter]:
        """The parameters themselves."""
        return list(self._parameters.values())

    @torch.no_grad()
    def set(self, vector: Tensor) -> None:
        """Give the module the parameters of a vector [D].

        Raises:
            InputError: a vector of another length, which another architecture has made.
        """
        for p, part in zip(self._parameters.values(), self.split(vector).values(), strict=True):
            p.copy_(part)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """The parts of a vector [D] by name, in the tensors' shapes."""
        if vector.shape != (len(self),):
            raise InputError(
                f"checkpoint: has {vector.numel()} parameters, the module {len(self)}; give one of this architecture"
            )
        parts = torch.split(vector, list(self.sizes.values()))
        return {n: part.view(self.shapes[n]) for n, part in zip(self.sizes, parts, strict=True)}

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One vector [D] of tensors in the parameters' order."""
        return torch.cat([part.reshape(-1) for part in parts])

    def mass(self, vector: Tensor) -> dict[str, float]:
        """Each tensor's share of a vector's squared length."""
        squares = {name: float(part.double().square().sum()) for name, part in self.split(vector).items()}
        whole = sum(squares.values())
        return {name: value / whole if whole else 0.0 for name, value in squares.items()}


class _Losses(nn.Module):
    """Makes a module's `per_example_losses` what is called, so that `functional_call` can give it other parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> Tensor:
        losses: Any = self.module.per_example_losses
        found: Tensor = losses(batch)
        return found


def losses_at(module: nn.Module, batch: Any) -> LossesAt:
    """The losses [n] of a batch as a function of the module's trainable parameters [D], for torch.func and autograd.

    Args:
        module: has `per_example_losses(batch) -> [n]`; buffers and frozen parameters stay what they are.
        batch: of examples.
    """
    check_losses(module)
    flat, called = FlatParameters(module), _Losses(module)

    def losses(theta: Tensor) -> Tensor:
        parts = {f"module.{name}": part for name, part in flat.split(theta).items()}
        found: Tensor = torch.func.functional_call(called, parts, (batch,))
        return found

    return losses


def check_losses(module: nn.Module) -> None:
    """Refuse a module whose examples' losses nobody can ask for.

    Raises:
        InputError: it has no `per_example_losses`.
    """
    if not callable(getattr(module, "per_example_losses", None)):
        raise InputError(
            f"probe: {type(module).__name__} has no per_example_losses(self, batch); "
            "add the method, which returns the loss of every example of a batch [n]"
        )


def directional_derivatives(losses: LossesAt, theta: Tensor, directions: Tensor, chunk: int = 16) -> Tensor:
    """<b, gradient of every example's loss> [K, n] for directions b [K, D], by forward mode: no gradient is ever stored.

    Args:
        losses: with forward-mode rules.
        theta: [D].
        directions: [K, D].
        chunk: directions at once.
    """

    def along(direction: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(losses, (theta,), (direction,))[1]
        return found

    with torch.no_grad():
        parts = [
            torch.func.vmap(along, randomness="same")(part) if len(part) > 1 else along(part[0])[None]
            for part in torch.split(directions, chunk)
        ]
    return torch.cat(parts)
