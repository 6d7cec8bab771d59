"""A module's trainable parameters as one vector, and its examples' losses as a function of that vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.errors import InputError

LossesAt = Callable[[Tensor], Tensor]
"""Maps parameters [D] to losses [n] of fixed examples."""

_FEW_DIRECTIONS, _MANY_USES = 3, 2.0
_GRADIENT_NUMBERS = 10_000_000
"""Numbers of examples' gradients that are held at once."""


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


def projected_gradients(module: nn.Module, batch: Any, directions: Tensor) -> Tensor:
    """<b, gradient of every example's loss> [K, n] at the module's parameters, whichever way is quicker.

    Forward mode costs two forward passes a direction, and holds no gradient. Where every weight is used at many positions of an
    example (tokens, pixels), a few examples' gradients at a time cost three forward passes for all directions together: with 10
    directions that is 5 times as fast for a small transformer, and 18 times as slow for a network of dense layers.

    Args:
        module: has `per_example_losses`, which must treat examples one by one.
        batch: tensors whose first axis is the examples'.
        directions: [K, D].
    """
    check_losses(module)
    flat = FlatParameters(module)
    if len(directions) < _FEW_DIRECTIONS or _uses(module, batch, len(flat)) < _MANY_USES:
        return directional_derivatives(losses_at(module, batch), flat.vector(), directions)
    called = _Losses(module)
    parts = {f"module.{name}": part for name, part in flat.split(flat.vector()).items()}
    along = {f"module.{name}": torch.stack([flat.split(b)[name].flatten() for b in directions]) for name in flat.names}

    def loss(weights: dict[str, Tensor], example: Any) -> Tensor:
        one = tree_map(lambda leaf: leaf[None] if isinstance(leaf, Tensor) else leaf, example)
        found: Tensor = torch.func.functional_call(called, weights, (one,))[0]
        return found

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0), randomness="same")
    found = []
    for some in _chunks(batch, max(1, _GRADIENT_NUMBERS // len(flat))):
        each = gradients(parts, some)
        found.append(torch.stack([along[name] @ each[name].flatten(1).T for name in along]).sum(0))
    return torch.cat(found, 1)


def _uses(module: nn.Module, batch: Any, size: int) -> float:
    """How often an example uses a weight on average: multiplications of a forward pass over parameters."""
    one = tree_map(lambda leaf: leaf[:1] if isinstance(leaf, Tensor) else leaf, batch)
    losses: Any = module.per_example_losses
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        losses(one)
    return float(counter.get_total_flops()) / (2 * size)


def _chunks(batch: Any, size: int) -> Iterator[Any]:
    leaves = [leaf for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)]
    for start in range(0, len(leaves[0]), size):
        part = slice(start, start + size)
        yield tree_map(lambda leaf, part=part: leaf[part] if isinstance(leaf, Tensor) else leaf, batch)
