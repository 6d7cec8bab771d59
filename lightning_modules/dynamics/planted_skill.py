"""A model whose skill is planted: half of the examples need a feature that the others do not have, learned after all the rest.

Linear networks of two layers learn the features of y = x * weights one by one, the strongest first. The hidden feature is the weakest
and rarest, so its breakthrough comes last, when the mean loss is nearly flat, and only its examples have it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.dynamics.flat import FlatParameters, LossesAt, losses_at
from lightning_modules.dynamics.recorder import Checkpoints
from lightning_modules.errors import InputError

WEIGHTS = (2.0, 1.5, 1.2, 1.0)
"""Of three nuisance features and the hidden one."""
_NOISE = 0.05
_HIDDEN_UNITS = 8
_START = 0.05


class PlantedNet(nn.Module):
    """x [n, 4] -> 8 hidden linear units -> y [n, 4], without biases: 64 parameters, float64.

    Args:
        generator: of the first weights, N(0, 0.05^2).
    """

    def __init__(self, generator: np.random.Generator) -> None:
        super().__init__()
        size = len(WEIGHTS)
        self.first = nn.Parameter(torch.from_numpy(_START * generator.standard_normal((_HIDDEN_UNITS, size))))
        self.second = nn.Parameter(torch.from_numpy(_START * generator.standard_normal((size, _HIDDEN_UNITS))))

    def forward(self, x: Tensor) -> Tensor:
        """y [n, 4] of x [n, 4]."""
        found: Tensor = x @ self.first.T @ self.second.T
        return found

    def per_example_losses(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """1/2 |prediction - y|^2 [n]."""
        x, y = batch
        found: Tensor = 0.5 * (self(x) - y).square().sum(1)
        return found


def planted_examples(n: int, generator: np.random.Generator) -> tuple[Tensor, Tensor, np.ndarray]:
    """Examples x [n, 4] and y [n, 4], and which half of them has the hidden feature [n].

    Three nuisance features are Gaussian, the hidden one is +-1 for half of the rows and 0 for the others;
    y = x * (2, 1.5, 1.2, 1) + 0.05 noise.
    """
    x = np.concatenate([generator.standard_normal((n, len(WEIGHTS) - 1)), np.zeros((n, 1))], 1)
    hidden = generator.permutation(n) < n // 2
    x[hidden, -1] = generator.choice([-1.0, 1.0], int(hidden.sum()))
    y = x * np.array(WEIGHTS) + _NOISE * generator.standard_normal((n, len(WEIGHTS)))
    return torch.from_numpy(x), torch.from_numpy(y), hidden


@dataclass(frozen=True)
class PlantedRun:
    """A training of `PlantedNet`.

    Args:
        checkpoints: float64.
        training: losses of the examples it learned from, for a basis.
        held_out: losses of the others, to be taken apart.
        hidden: which of these have the hidden feature [n].
    """

    checkpoints: Checkpoints
    training: LossesAt
    held_out: LossesAt
    hidden: np.ndarray


def train_planted(seed: int, steps: int = 2400, every: int = 20, n: int = 600, eta: float = 0.05) -> PlantedRun:
    """Gradient descent on n examples.

    Args:
        seed: of examples and first weights.
        steps: of descent.
        every: steps between checkpoints.
        n: examples to learn from, and as many held out.
        eta: step size.

    Raises:
        InputError: `steps` below `every`, or fewer than 2 examples.
    """
    if not 1 <= every <= steps or n < 2:
        raise InputError(f"planted skill: {steps} steps, recorded every {every}, on {n} examples; give more")
    generator = np.random.default_rng(seed)
    *held_out, hidden = planted_examples(n, generator)
    *training, _ = planted_examples(n, generator)
    net = PlantedNet(generator)
    flat = FlatParameters(net)
    found = [flat.vector()]
    for step in range(1, steps + 1):
        loss = net.per_example_losses((training[0], training[1])).mean()
        for p, gradient in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters())), strict=True):
            p.data.sub_(gradient, alpha=eta)
        if step % every == 0:
            found.append(flat.vector())
    checkpoints = Checkpoints(range(0, steps + 1, every), found, torch.double)
    return PlantedRun(checkpoints, losses_at(net, tuple(training)), losses_at(net, tuple(held_out)), hidden)
