"""Gradient descent on a whole training set, with the loss of every example at every step.

    shiftlab train --method lightning_modules.dynamics.full_batch:FullBatchModule \\
        --dataset lightning_modules.dynamics.full_batch_data:FullBatchData --hyperparameters.mode opposing --steps 500 \\
        --probe sharpness:examples=1797 --probe opposing-signals:examples=1797 --run runs/opposing
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lightning_modules.dynamics.split_sgd import SplitSGD
from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import Choice, LogUniform, When
from lightning_modules.lightning_import import pl

LOSSES = ("cross_entropy", "squared")
OPTIMIZERS = ("gd", "adam", "sign_sgd", "split_sgd")


class FullBatchModule(pl.LightningModule):
    """A classifier of ReLU layers, trained by plain steps on whatever batches come: all examples at once for gradient descent.

    After a step `losses` has the loss of every example of the batch BEFORE it [n]: what the forward pass gave anyway.

    Args:
        inputs: numbers in an example.
        classes: their number.
        width: units of a hidden layer.
        depth: hidden layers.
        loss: "cross_entropy", whose sharpness decays once all is fitted, or "squared": half the squared distance of the outputs
            from the label's unit vector, whose sharpness stays.
        optimizer: "gd" (with `momentum` and `dampening`), "adam", "sign_sgd" or "split_sgd" (see `SplitSGD`).
        lr: step size; of sign_sgd the length of a coordinate's step.
        momentum: of all but adam.
        dampening: of the newest gradient in the momentum.
        sign_lr: of split_sgd.
        quantile: of split_sgd.
        seed: of the first weights: N(0, 2 / fan in), biases 0.

    Raises:
        InputError: a value out of range, or examples of another size.
    """

    def __init__(
        self,
        inputs: int = 64,
        classes: int = 10,
        width: int = 64,
        depth: int = 2,
        loss: Annotated[str, Choice(LOSSES)] = "cross_entropy",
        optimizer: Annotated[str, Choice(OPTIMIZERS)] = "gd",
        lr: Annotated[float, LogUniform(1e-3, 1.0)] = 0.2,
        momentum: float = 0.0,
        dampening: float = 0.0,
        sign_lr: Annotated[float, LogUniform(1e-4, 1e-2), When("optimizer", "split_sgd")] = 1e-3,
        quantile: float = 0.9,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, choice, known in (("loss", loss, LOSSES), ("optimizer", optimizer, OPTIMIZERS)):
            if choice not in known:
                raise InputError(f"{name}: unknown {choice!r}; choose from {', '.join(known)}")
        sizes = {"inputs": inputs, "classes": classes, "width": width, "depth": depth}
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"{name}: is {size}; give 1 or more")
        if not (0 < lr < math.inf and 0 <= momentum < 1):
            raise InputError(f"lr, momentum: are {lr} and {momentum}; give a positive lr, a momentum of 0 to below 1")
        self.save_hyperparameters()
        self.inputs, self.loss = inputs, loss
        self.losses = torch.empty(0)
        widths = [inputs, *[width] * depth, classes]
        layers: list[nn.Module] = [nn.Flatten()]
        generator = torch.Generator().manual_seed(seed)
        for before, after in pairwise(widths):
            layer = nn.utils.skip_init(nn.Linear, before, after)  # type: ignore[no-untyped-call]
            nn.init.normal_(layer.weight, std=math.sqrt(2 / before), generator=generator)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [n, C] of examples [n, ...]."""
        if x[0].numel() != self.inputs:
            raise InputError(f"inputs: is {self.inputs}, the examples have {x[0].numel()} numbers; make them equal")
        found: Tensor = self.net(x)
        return found

    def per_example_losses(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Losses [n] of examples and labels."""
        x, y = batch
        outputs = self(x)
        if self.loss == "cross_entropy":
            return nn.functional.cross_entropy(outputs, y, reduction="none")
        aims = nn.functional.one_hot(y, outputs.shape[1]).to(outputs)
        squared: Tensor = 0.5 * (outputs - aims).square().sum(1)
        return squared

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean loss."""
        losses = self.per_example_losses(batch)
        self.losses = losses.detach()
        loss = losses.mean()
        self.log("train_loss", loss.detach(), batch_size=len(losses))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the mean loss and the accuracy."""
        losses = self.per_example_losses(batch)
        accuracy = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log_dict({"val_loss": losses.mean(), "val_accuracy": accuracy}, batch_size=len(losses))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The one that was asked for."""
        o: Any = self.hparams
        parameters = list(self.parameters())
        if o.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=o.lr)
        if o.optimizer == "gd":
            return torch.optim.SGD(parameters, lr=o.lr, momentum=o.momentum, dampening=o.dampening)
        sign = o.optimizer == "sign_sgd"
        sign_lr, quantile = (o.lr, 0.0) if sign else (o.sign_lr, o.quantile)
        return SplitSGD(parameters, o.lr, sign_lr, o.momentum, o.dampening, quantile)
