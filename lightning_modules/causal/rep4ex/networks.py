"""Small networks of one shape, stacked: K at a time in one product a layer, each as it would be alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_modules.lightning_import import pl

SLOPE = 0.2
"""Of the leaky ReLU on its negative side."""

_BLOCK = 50


class StackedMLP(nn.Module):
    """K multilayer perceptrons with leaky ReLU between layers; weights are uniform in +-1 / sqrt(fan in).

    Args:
        sizes: widths of input, hidden layers and output.
        generators: one a network, the source of its weights.
    """

    def __init__(self, sizes: Sequence[int], generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in itertools.pairwise(sizes):
            bound = 1 / math.sqrt(inputs)
            weight = [torch.empty(outputs, inputs).uniform_(-bound, bound, generator=g) for g in generators]
            bias = [torch.empty(outputs, 1).uniform_(-bound, bound, generator=g) for g in generators]
            self.weights.append(nn.Parameter(torch.stack(weight)))
            self.biases.append(nn.Parameter(torch.stack(bias)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [K, n, out] of inputs [K, n, in]."""
        values, last = inputs.mT, len(self.weights) - 1  # examples along the last axis: several times as fast
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = torch.baddbmm(bias, weight, values)
            if number < last:
                values = nn.functional.leaky_relu(values, SLOPE)
        return values.mT


class StackedAutoencoder(nn.Module):
    """K pairs of encoder and decoder.

    Args:
        dim_x: width of the features, dx.
        dim_z: of the latents, d.
        width: of each hidden layer.
        depth: number of hidden layers.
        seeds: [K], of the first weights.
    """

    def __init__(self, dim_x: int, dim_z: int, width: int, depth: int, seeds: Sequence[int]) -> None:
        super().__init__()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        hidden = [width] * depth
        self.encoder = StackedMLP([dim_x, *hidden, dim_z], generators)
        self.decoder = StackedMLP([dim_z, *hidden, dim_x], generators)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [K, n, d] and reconstructions [K, n, dx] of standardised features [K, n, dx]."""
        phi = self.encoder(x)
        return phi, self.decoder(phi)

    @torch.no_grad()
    def take(self, others: StackedAutoencoder, model: int) -> None:
        """Copy one network of another stack into this stack of one."""
        for own, theirs in zip(self.parameters(), others.parameters(), strict=True):
            own.copy_(theirs[model : model + 1])


def one_cycle(
    parameters: Sequence[nn.Parameter], lr: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam, which acts on each coordinate alone, under a one-cycle schedule over all steps."""
    optimizer = torch.optim.Adam(list(parameters), lr=lr, fused=True)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 2))


def blocks(steps: int) -> list[int]:
    """What a module's `train_dataloader` gives whose `training_step` is `update`: one entry for 50 updates."""
    return [0] * math.ceil(steps / _BLOCK)


def update(module: pl.LightningModule, steps: int, loss: Callable[[], Tensor]) -> None:
    """Make up to 50 updates of a module with manual optimization, at most `steps` in all.

    An update of networks this small takes as long as Lightning's own work around a step.

    Args:
        module: with one optimizer and one schedule.
        steps: of the whole training.
        loss: draws a batch and gives its loss.
    """
    optimizer, schedule = module.optimizers(), module.lr_schedulers()
    for _ in range(min(_BLOCK, steps - module.global_step)):
        value = loss()
        optimizer.zero_grad()  # type: ignore[union-attr]
        module.manual_backward(value)
        optimizer.step()  # type: ignore[union-attr]
        schedule.step()  # type: ignore[union-attr]
