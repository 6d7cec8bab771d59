"""Adam as a pure function, for methods whose step is more than Adam on one loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_modules.domain_generalization.method import Method, Parameters, Shapes, State


def adam_state(parameters: Parameters, name: str = "adam") -> State:
    """Moments of zero for each parameter, and the number of steps, under names that begin with `name`."""
    state: State = {f"{name}.count": torch.zeros((), dtype=next(iter(parameters.values())).dtype)}
    for key, value in parameters.items():
        state[f"{name}.mean.{key}"] = torch.zeros_like(value)
        state[f"{name}.square.{key}"] = torch.zeros_like(value)
    return state


def adam(
    parameters: Parameters,
    gradients: Parameters,
    state: Mapping[str, Tensor],
    lr: Any,
    weight_decay: Any,
    betas: tuple[Any, Any] = (0.9, 0.999),
    name: str = "adam",
) -> tuple[Parameters, State]:
    """One step of Adam with L2 penalty, the update of `torch.optim.Adam`.

    Args:
        parameters: by name.
        gradients: by the same names.
        state: holds what `adam_state` made; other entries are left alone.
        lr: learning rate.
        weight_decay: weight of the L2 penalty's gradient.
        betas: decay rates of the two moments.
        name: of the entries in `state`.

    Returns:
        The parameters and the changed entries of the state.

    Source: Kingma & Ba, "Adam", arXiv 1412.6980, algorithm 1; epsilon is 1e-8.
    """
    first, second = betas
    count = state[f"{name}.count"] + 1
    bias1, bias2 = 1 - first**count, 1 - second**count
    new: State = {f"{name}.count": count}
    moved: dict[str, Tensor] = {}
    for key, value in parameters.items():
        gradient = gradients[key] + weight_decay * value
        mean = first * state[f"{name}.mean.{key}"] + (1 - first) * gradient
        square = second * state[f"{name}.square.{key}"] + (1 - second) * gradient.square()
        moved[key] = value - lr / bias1 * mean / ((square / bias2).sqrt() + 1e-8)
        new[f"{name}.mean.{key}"], new[f"{name}.square.{key}"] = mean, square
    return moved, new


def first_adam_step(parameters: Parameters, gradients: Parameters, lr: Any, weight_decay: Any) -> Parameters:
    """Where a fresh Adam goes in its first step: p - lr g / (|g| + 1e-8), g with the L2 penalty's gradient."""
    moved = {}
    for key, value in parameters.items():
        gradient = gradients[key] + weight_decay * value
        moved[key] = value - lr * gradient / (gradient.abs() + 1e-8)
    return moved


class AdamMethod(Method):
    """A method with a step of its own that keeps Adam's moments of the network in its state."""

    @staticmethod
    def initial_state(
        hyperparameters: Any, shapes: Shapes, parameters: Parameters, generator: torch.Generator
    ) -> State:
        """Moments of zero."""
        return adam_state(parameters)
