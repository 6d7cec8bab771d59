"""K networks of one shape as one module: parameters stacked along a first axis, one product for all, Adam per model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.networks import Network, as_floats

_STACKABLE = (nn.Flatten, nn.Linear, nn.ReLU, nn.Sequential)


class StackedNetwork(nn.Module):
    """K networks of one shape, evaluated together.

    Networks of linear layers and ReLU become batched matrix products; any other runs under `torch.func.vmap`.

    Args:
        networks: K networks that differ in their parameters' values only.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        first = networks[0]
        self.size = len(networks)
        self.is_linear = all(isinstance(m, _STACKABLE) for m in first.modules() if m is not first)
        # Kept out of the module's own parameters: it only says how to compute.
        object.__setattr__(self, "_skeleton", copy.deepcopy(first).to("meta"))
        self._names = [name for name, _ in first.named_parameters()]
        for name in self._names:
            values = torch.stack([network.get_parameter(name).detach() for network in networks])
            if self.is_linear and values.dim() == 3:  # weights as [K, in, out], ready for x @ W
                values = values.mT.contiguous()
            self.register_parameter(name.replace(".", "_"), nn.Parameter(values))

    def named_stacks(self) -> dict[str, Tensor]:
        """Stacked parameters [K, ...] by the single network's names (linear weights as [K, in, out])."""
        return {name: self.get_parameter(name.replace(".", "_")) for name in self._names}

    def forward(self, inputs: Tensor, shared: bool = False) -> tuple[tuple[Tensor, ...], Tensor]:
        """Compute hidden layers [K, n, d_l] and logits [K, n, C].

        Args:
            inputs: [K, n, ...], or [n, ...] where all models see the same examples.
            shared: whether `inputs` is the latter.
        """
        inputs = as_floats(inputs)
        if not self.is_linear:
            outputs: tuple[tuple[Tensor, ...], Tensor] = torch.func.vmap(
                self.single, in_dims=(0, None if shared else 0)
            )(self.named_stacks(), inputs)
            return outputs
        layers, values, shared = [], inputs.flatten(1 if shared else 2), shared
        for prefix, layer in self._layers("featurizer"):
            if isinstance(layer, nn.ReLU):
                values = values.relu()
                layers.append(values)
            elif isinstance(layer, nn.Linear):
                values = self._product(prefix, values, shared)
                shared = False
        return tuple(layers) or (values,), self._product("classifier", values, shared)

    def single(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Compute hidden layers [n, d_l] and logits [n, C] of one network; to be used under `torch.func.vmap`.

        Args:
            parameters: one model's slices of `named_stacks`.
            inputs: [n, ...].
        """
        inputs = as_floats(inputs)
        if not self.is_linear:
            skeleton: nn.Module = self._skeleton  # type: ignore[assignment]
            outputs: tuple[tuple[Tensor, ...], Tensor] = torch.func.functional_call(
                skeleton, dict(parameters), (inputs,)
            )
            return outputs
        layers, values = [], inputs.flatten(1)
        for prefix, layer in self._layers("featurizer"):
            if isinstance(layer, nn.ReLU):
                values = values.relu()
                layers.append(values)
            elif isinstance(layer, nn.Linear):
                values = values @ parameters[f"{prefix}.weight"] + parameters[f"{prefix}.bias"]
        logits = values @ parameters["classifier.weight"] + parameters["classifier.bias"]
        return tuple(layers) or (values,), logits

    def classifiers(self) -> tuple[Tensor, Tensor]:
        """Weights [K, C, d] and biases [K, C] of the classifiers."""
        weight = self.get_parameter("classifier_weight")
        return weight.mT if self.is_linear else weight, self.get_parameter("classifier_bias")

    def _layers(self, part: str) -> list[tuple[str, nn.Module]]:
        module = getattr(self._skeleton, part)
        if not isinstance(module, nn.Sequential):
            return [(part, module)]
        return [(f"{part}.{name}", layer) for name, layer in module.named_children()]

    def _product(self, prefix: str, values: Tensor, shared: bool) -> Tensor:
        name = prefix.replace(".", "_")
        weight, bias = self.get_parameter(f"{name}_weight"), self.get_parameter(f"{name}_bias")
        if shared:  # one product [n, in] x [in, K out] instead of K
            wide = values @ weight.transpose(0, 1).flatten(1)
            return wide.view(len(values), self.size, -1).transpose(0, 1) + bias.unsqueeze(1)
        return torch.baddbmm(bias.unsqueeze(1), values, weight)


class StackedAdam(torch.optim.Optimizer):
    """Adam with a learning rate, a weight decay and a memory of its own for each of K stacked models.

    The update of a model is exactly `torch.optim.Adam(fused=True)` on its slice of the stacked parameters.

    Args:
        parameters: stacked tensors [K, ...].
        lr: [K] learning rates.
        weight_decay: [K] L2 penalties.
    """

    def __init__(self, parameters: Sequence[Tensor], lr: Sequence[float], weight_decay: Sequence[float]) -> None:
        super().__init__(list(parameters), {})
        self._lr, self._weight_decay = list(lr), list(weight_decay)
        self._stacks = list(parameters)
        self._gradients = [torch.zeros_like(stack) for stack in self._stacks]
        self._averages = [torch.zeros_like(stack) for stack in self._stacks]
        self._squares = [torch.zeros_like(stack) for stack in self._stacks]
        device = self._stacks[0].device
        self._steps = [[torch.zeros((), device=device) for _ in self._stacks] for _ in self._lr]
        self.active = [True] * len(self._lr)
        with torch.no_grad():
            tensors = (self._stacks, self._gradients, self._averages, self._squares)
            # Views of each model's slices, made once: the tensors are only ever changed in place.
            self._slices = [tuple([t[k] for t in stack] for stack in tensors) for k in range(len(self._lr))]

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Zero the gradients in place, and put them back where somebody took them away: slices of them are in use."""
        for stack, gradient in zip(self._stacks, self._gradients, strict=True):
            stack.grad = gradient.zero_()

    def reset(self, model: int, lr: float) -> None:
        """Let one model's Adam forget its moments and go on with a learning rate."""
        self._lr[model] = lr
        _, _, averages, squares = self._slices[model]
        for tensor in (*averages, *squares, *self._steps[model]):
            tensor.zero_()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every active model."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for model, (parameters, gradients, averages, squares) in enumerate(self._slices):
            if not self.active[model]:
                continue
            torch._foreach_add_(self._steps[model], 1)
            torch._fused_adam_(
                parameters,
                gradients,
                averages,
                squares,
                [],
                self._steps[model],
                lr=self._lr[model],
                beta1=0.9,
                beta2=0.999,
                weight_decay=self._weight_decay[model],
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )
        return loss


class FunctionalStep(torch.optim.Optimizer):
    """Puts in place the parameters that a pure update computed: what `Method.update` needs of an optimiser.

    Args:
        parameters: what is trained, of one model or stacked.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__(list(parameters), {})
        self._parameters = list(parameters)
        self.following: list[Tensor] = []
        self.active: list[bool] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the training step, which leaves the next values in `following`, and put them in place."""
        if closure is not None:
            with torch.enable_grad():
                closure()
        for parameter, value in zip(self._parameters, self.following, strict=True):
            parameter.copy_(value)
