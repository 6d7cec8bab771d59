"""K networks of one shape as one module: parameters stacked along a first axis, one product for all, Adam per model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.networks import Network

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
        self._linear = all(isinstance(m, _STACKABLE) for m in first.modules() if m is not first)
        # Kept out of the module's own parameters: it only says how to compute.
        object.__setattr__(self, "_skeleton", copy.deepcopy(first).to("meta"))
        self._names = [name for name, _ in first.named_parameters()]
        for name in self._names:
            values = torch.stack([network.get_parameter(name).detach() for network in networks])
            if self._linear and values.dim() == 3:  # weights as [K, in, out], ready for x @ W
                values = values.mT.contiguous()
            self.register_parameter(name.replace(".", "_"), nn.Parameter(values))

    def named_stacks(self) -> dict[str, Tensor]:
        """Stacked parameters [K, ...] by the single network's names (linear weights as [K, in, out])."""
        return {name: self.get_parameter(name.replace(".", "_")) for name in self._names}

    def forward(self, inputs: Tensor, shared: bool = False) -> tuple[Tensor, Tensor]:
        """Compute features [K, n, d] and logits [K, n, C].

        Args:
            inputs: [K, n, ...], or [n, ...] where all models see the same examples.
            shared: whether `inputs` is the latter.
        """
        if inputs.dtype == torch.uint8:
            inputs = inputs.float() / 255
        if not self._linear:
            skeleton: nn.Module = self._skeleton  # type: ignore[assignment]
            call: Callable[..., Any] = lambda p, x: torch.func.functional_call(skeleton, p, (x,))  # noqa: E731
            outputs: tuple[Tensor, Tensor] = torch.func.vmap(call, in_dims=(0, None if shared else 0))(
                self.named_stacks(), inputs
            )
            return outputs
        features = self._run_part("featurizer", inputs.flatten(1 if shared else 2), shared)
        return features, self._run_part("classifier", features, features.dim() == 2)

    def _run_part(self, part: str, values: Tensor, shared: bool) -> Tensor:
        module = getattr(self._skeleton, part)
        layers = list(module.named_children()) if isinstance(module, nn.Sequential) else [("", module)]
        for name, layer in layers:
            if isinstance(layer, nn.ReLU):
                values = values.relu()
            elif isinstance(layer, nn.Linear):
                prefix = "_".join(filter(None, (part, name)))
                weight, bias = self.get_parameter(f"{prefix}_weight"), self.get_parameter(f"{prefix}_bias")
                if shared:  # one product [n, in] x [in, K out] instead of K
                    wide = values @ weight.transpose(0, 1).flatten(1)
                    values = wide.view(len(values), self.size, -1).transpose(0, 1) + bias.unsqueeze(1)
                    shared = False
                else:
                    values = torch.baddbmm(bias.unsqueeze(1), values, weight)
        return values


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

    def reset(self, model: int) -> None:
        """Let one model's Adam forget its moments."""
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
