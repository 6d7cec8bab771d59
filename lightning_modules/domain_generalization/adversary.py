"""The discriminator of DANN and CDANN, and the step that trains it and the network in turn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.domain_generalization.adam import adam, adam_state
from lightning_modules.domain_generalization.losses import one_hot
from lightning_modules.domain_generalization.method import (
    Batch,
    Hyperparameters,
    Method,
    Model,
    Parameters,
    Shapes,
    State,
)
from lightning_modules.errors import InputError
from lightning_modules.hyperparameters import Choice, IntLogUniform, LogUniform


@dataclass(frozen=True)
class AdversarialHyperparameters(Hyperparameters):
    """DomainBed's; `lr` and `weight_decay` are the network's.

    Args:
        dann_lambda: weight of the discriminator's loss in the network's.
        lr_d: learning rate of the discriminator.
        weight_decay_d: L2 penalty of the discriminator.
        d_steps_per_g_step: steps of the discriminator for each of the network.
        grad_penalty: weight of the discriminator's squared input gradient.
        beta1: decay of the first moment in both Adams (of the second: 0.9).
        mlp_width: hidden units of a layer of the discriminator.
        mlp_depth: linear layers of the discriminator.
        mlp_dropout: share of hidden units dropped in the discriminator.
    """

    dann_lambda: Annotated[float, LogUniform(1e-2, 1e2)] = 1.0
    lr_d: Annotated[float, LogUniform(10**-4.5, 10**-2.5)] = 1e-3
    weight_decay_d: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0
    d_steps_per_g_step: Annotated[int, IntLogUniform(1, 8)] = 1
    grad_penalty: Annotated[float, LogUniform(1e-2, 1e1)] = 0.0
    beta1: Annotated[float, Choice((0.0, 0.5))] = 0.5
    mlp_width: Annotated[int, IntLogUniform(2**6, 2**10)] = 256
    mlp_depth: Annotated[int, Choice((3, 4, 5))] = 3
    mlp_dropout: Annotated[float, Choice((0.0, 0.1, 0.5))] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mlp_depth < 2 or self.mlp_width < 1:
            raise InputError(
                f"hyperparameters: mlp_depth {self.mlp_depth} and mlp_width {self.mlp_width}; give at least 2 and 1"
            )
        if not 0 <= self.mlp_dropout < 1:
            raise InputError(f"hyperparameters: mlp_dropout is {self.mlp_dropout}; give 0 or more, below 1")
        if self.d_steps_per_g_step < 1:
            raise InputError(f"hyperparameters: d_steps_per_g_step is {self.d_steps_per_g_step}; give 1 or more")


def discriminate(parameters: Parameters, values: Tensor, masks: Tensor | None) -> Tensor:
    """Logits [n, E] of the environment from values [n, d].

    Args:
        parameters: "0.weight", "0.bias", "1.weight", ...
        values: features, with the class embedded or not.
        masks: [layers - 1, n, width], what dropout leaves of the hidden units; None for no dropout.
    """
    depth = sum(name.endswith(".weight") for name in parameters)
    for layer in range(depth):
        values = values @ parameters[f"{layer}.weight"] + parameters[f"{layer}.bias"]
        if layer < depth - 1:
            values = (values if masks is None else values * masks[layer]).relu()
    return values


def discriminator_loss(
    parameters: Parameters,
    features: Tensor,
    labels: Tensor,
    masks: Tensor | None,
    grad_penalty: Any,
    conditional: bool,
    classes: int,
) -> Tensor:
    """Cross-entropy of the environment, plus grad_penalty * mean ||d CE / d input||^2.

    Args:
        parameters: of the discriminator, and "embedding" [C, d] where `conditional`.
        features: z [E, B, d].
        labels: [E, B].
        masks: see `discriminate`.
        grad_penalty: weight.
        conditional: whether the class is embedded and the examples weighted by 1 / (C * count of their class).
        classes: number of classes, C.
    """
    environments = torch.arange(features.shape[0], device=features.device).repeat_interleave(features.shape[1])
    layers = {name: value for name, value in parameters.items() if name != "embedding"}
    values, classes_of = features.flatten(0, 1), labels.flatten()
    if conditional:
        values = values + parameters["embedding"][classes_of]

    def total(values: Tensor) -> tuple[Tensor, Tensor]:
        losses = F.cross_entropy(discriminate(layers, values, masks), environments, reduction="none")
        return losses.sum(), losses

    slopes, losses = torch.func.grad(total, has_aux=True)(values)
    loss: Tensor
    if conditional:
        onehot = one_hot(classes_of, classes, losses)
        counts = onehot.sum(0)
        loss = (losses / (counts[classes_of] * classes)).sum()
    else:
        loss = losses.mean()
    total_loss: Tensor = loss + grad_penalty * slopes.square().sum(1).mean()
    return total_loss


class AdversarialMethod(Method):
    """What DANN and CDANN share."""

    Hyperparameters = AdversarialHyperparameters
    minimum_environments = 2
    networks = ("mlp", "small-cnn", "cnn")
    structural = ("mlp_width", "mlp_depth")
    conditional: ClassVar[bool] = False

    @staticmethod
    def noise(generator: np.random.Generator, shapes: Shapes, hyperparameters: Any) -> dict[str, Tensor]:
        """Draw what dropout leaves, scaled up: [layers - 1, E B, width]; nothing is drawn without dropout."""
        h = hyperparameters
        size = (h.mlp_depth - 1, shapes.environments * shapes.batch, h.mlp_width)
        if h.mlp_dropout == 0:
            return {"masks": torch.ones(()).expand(size)}
        kept = generator.random(size, dtype=np.float32) >= h.mlp_dropout
        return {"masks": torch.from_numpy(kept).to(torch.get_default_dtype()) / (1 - h.mlp_dropout)}

    @classmethod
    def initial_state(
        cls, hyperparameters: Any, shapes: Shapes, parameters: Parameters, generator: torch.Generator
    ) -> State:
        """Draw the discriminator (uniform in +-1/sqrt(fan in); embedding standard normal), and moments of zero."""
        widths = [shapes.features, *[hyperparameters.mlp_width] * (hyperparameters.mlp_depth - 1), shapes.environments]
        adversary: dict[str, Tensor] = {}
        for layer, (fan_in, fan_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            bound = 1 / math.sqrt(fan_in)
            adversary[f"{layer}.weight"] = torch.empty(fan_in, fan_out).uniform_(-bound, bound, generator=generator)
            adversary[f"{layer}.bias"] = torch.empty(fan_out).uniform_(-bound, bound, generator=generator)
        if cls.conditional:
            adversary["embedding"] = torch.randn(shapes.classes, shapes.features, generator=generator)
        state = {f"adversary {name}": value for name, value in adversary.items()}
        return {**state, **adam_state(parameters), **adam_state(adversary, "adam_d")}

    @classmethod
    def update(
        cls,
        model: Model,
        parameters: Parameters,
        batch: Batch,
        hyperparameters: Any,
        state: Mapping[str, Tensor],
        step: Tensor,
    ) -> tuple[Parameters, State]:
        """A step of the discriminator or of the network, whose turn it is."""
        h, masks = hyperparameters, batch.noise["masks"]
        adversary = {name.split(" ")[1]: value for name, value in state.items() if name.startswith("adversary ")}

        def losses(parameters: Parameters, adversary: Parameters) -> tuple[Tensor, Tensor]:
            layers, logits = model(parameters, batch.inputs.flatten(0, 1))
            features = layers[-1].view(*batch.labels.shape, -1)
            found = discriminator_loss(
                adversary, features, batch.labels, masks, h.grad_penalty, cls.conditional, logits.shape[-1]
            )
            return F.cross_entropy(logits, batch.labels.flatten()) - h.dann_lambda * found, found

        def network_loss(parameters: Parameters) -> Tensor:
            return losses(parameters, adversary)[0]

        def adversary_loss(adversary: Parameters) -> Tensor:
            return losses(parameters, adversary)[1]

        betas = (h.beta1, 0.9)
        gradients = torch.func.grad(network_loss)(dict(parameters))
        moved, moments = adam(parameters, gradients, state, h.lr, h.weight_decay, betas)
        gradients = torch.func.grad(adversary_loss)(adversary)
        moved_d, moments_d = adam(adversary, gradients, state, h.lr_d, h.weight_decay_d, betas, "adam_d")
        # In a pack some members are at one turn and some at the other, so both steps are computed and one is kept.
        adversary_turn = (step + 1) % (1 + h.d_steps_per_g_step) < h.d_steps_per_g_step

        def keep(turn: Tensor, new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: torch.where(turn, value, old[name]) for name, value in new.items()}

        following = keep(adversary_turn, moved_d, adversary)
        return keep(~adversary_turn, moved, parameters), {
            **{f"adversary {name}": value for name, value in following.items()},
            **keep(adversary_turn, moments_d, state),
            **keep(~adversary_turn, moments, state),
        }
