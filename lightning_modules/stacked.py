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

    Networks of linear layers and ReLU become batched matrix products; any other runs under `torch.func.vmap`. Products
    are laid out as W [K, out, in] times inputs [K, in, n]: for the narrow layers of such networks BLAS is up to five
    times as fast with examples along the last axis as along the middle one.

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
            self.register_parameter(name.replace(".", "_"), nn.Parameter(values))

    def keep(self, models: Sequence[int]) -> None:
        """Go on with some of the models, in this order; the parameters stay the same objects, with fewer rows."""
        self.size = len(models)
        for parameter in self.parameters():
            parameter.grad = None
            parameter.data = parameter.data[list(models)]

    def named_stacks(self) -> dict[str, Tensor]:
        """Stacked parameters [K, ...] by the single network's names."""
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
        values = inputs.flatten(1 if shared else 2).mT
        layers = []
        for prefix, layer in self._layers("featurizer"):
            if isinstance(layer, nn.ReLU):
                values = values.relu_()  # in place: memory that is not asked for need not be made
                layers.append(values.mT)
            elif isinstance(layer, nn.Linear):
                values = self._product(prefix, values)
        return tuple(layers) or (values.mT,), self._product("classifier", values).mT

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

        def product(prefix: str, values: Tensor) -> Tensor:
            return parameters[f"{prefix}.weight"] @ values + parameters[f"{prefix}.bias"].unsqueeze(1)

        layers, values = [], inputs.flatten(1).mT
        for prefix, layer in self._layers("featurizer"):
            if isinstance(layer, nn.ReLU):
                values = values.relu()
                layers.append(values.mT)
            elif isinstance(layer, nn.Linear):
                values = product(prefix, values)
        return tuple(layers) or (values.mT,), product("classifier", values).mT

    def classifiers(self) -> tuple[Tensor, Tensor]:
        """Weights [K, C, d] and biases [K, C] of the classifiers."""
        return self.get_parameter("classifier_weight"), self.get_parameter("classifier_bias")

    def _layers(self, part: str) -> list[tuple[str, nn.Module]]:
        module = getattr(self._skeleton, part)
        if not isinstance(module, nn.Sequential):
            return [(part, module)]
        return [(f"{part}.{name}", layer) for name, layer in module.named_children()]

    def _product(self, prefix: str, values: Tensor) -> Tensor:
        """W v + b [K, out, n] from v [K, in, n], or from v [in, n] where all models see the same."""
        name = prefix.replace(".", "_")
        weight, bias = self.get_parameter(f"{name}_weight"), self.get_parameter(f"{name}_bias").unsqueeze(2)
        if values.dim() == 2:  # one product instead of K
            return (weight.flatten(0, 1) @ values).view(self.size, -1, values.shape[1]) + bias
        return torch.baddbmm(bias, weight, values)


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
        self._averages = [torch.zeros_like(stack) for stack in self._stacks]
        self._squares = [torch.zeros_like(stack) for stack in self._stacks]
        self._counts = torch.zeros(len(self._lr), device=self._stacks[0].device)
        self._slice()

    @torch.no_grad()
    def _slice(self) -> None:
        """Make views of each model's slices, once for many steps: the tensors are only ever changed in place."""
        tensors = (self._stacks, self._averages, self._squares)
        self._slices = [tuple([t[k] for t in stack] for stack in tensors) for k in range(len(self._lr))]
        self._steps = [[count] * len(self._stacks) for count in self._counts.unbind()]

    def keep(self, models: Sequence[int]) -> None:
        """Go on with some of the models, after `StackedNetwork.keep` has left the parameters with the same ones."""
        places = list(models)
        self._lr, self._weight_decay = [self._lr[k] for k in places], [self._weight_decay[k] for k in places]
        self._averages = [stack[places] for stack in self._averages]
        self._squares = [stack[places] for stack in self._squares]
        self._counts = self._counts[places]
        self._slice()

    def state_dict(self) -> dict[str, Any]:
        """Give the learning rates and the memories, for a checkpoint."""
        memories = {"lr": self._lr, "averages": self._averages, "squares": self._squares, "counts": self._counts}
        return super().state_dict() | {"stacked": memories}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        memories = state_dict["stacked"]
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "stacked"})
        device = self._counts.device
        self._lr = list(memories["lr"])
        self._averages = [tensor.to(device) for tensor in memories["averages"]]
        self._squares = [tensor.to(device) for tensor in memories["squares"]]
        self._counts = memories["counts"].to(device)
        self._slice()

    def reset(self, model: int, lr: float) -> None:
        """Let one model's Adam forget its moments and go on with a learning rate."""
        self._lr[model] = lr
        _, averages, squares = self._slices[model]
        for tensor in (*averages, *squares, self._counts[model]):
            tensor.zero_()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every model."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._counts += 1
        gradients = list(zip(*(self._gradient(stack).unbind() for stack in self._stacks), strict=True))
        for model, (parameters, averages, squares) in enumerate(self._slices):
            torch._fused_adam_(
                parameters,
                list(gradients[model]),
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

    @staticmethod
    def _gradient(stack: Tensor) -> Tensor:
        return torch.zeros_like(stack) if stack.grad is None else stack.grad.contiguous()


class FunctionalStep(torch.optim.Optimizer):
    """Puts in place the parameters that a pure update computed: what `Method.update` needs of an optimiser.

    Args:
        parameters: what is trained, of one model or stacked.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__(list(parameters), {})
        self._parameters = list(parameters)
        self.following: list[Tensor] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the training step, which leaves the next values in `following`, and put them in place."""
        if closure is not None:
            with torch.enable_grad():
                closure()
        for parameter, value in zip(self._parameters, self.following, strict=True):
            parameter.copy_(value)
