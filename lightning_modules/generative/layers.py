"""What the models are built of: diagonal Gaussians, and perceptrons whose first weights come from a generator."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.networks import initialise

LOG_SD_LIMIT = 5.0
"""Log standard deviations are clamped to +- this: a chain that conditions on its own samples diverges without (ours)."""

_OUTPUT_SCALE = 0.1
"""Of the last layer's first weights (ours): posteriors start near priors."""


class DiagonalGaussian(NamedTuple):
    """N(mean, diag(exp(log_sd))^2) over the last axis; both parts broadcast."""

    mean: Tensor
    log_sd: Tensor

    def at(self, noise: Tensor) -> Tensor:
        """Reparameterise standard noise."""
        return self.mean + self.log_sd.exp() * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of values [..., N], summed over the last axis."""
        scaled = (value - self.mean) * (-self.log_sd).exp()
        return -(0.5 * scaled.square() + self.log_sd + 0.5 * math.log(2 * math.pi)).sum(-1)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self || other) in closed form, summed over the last axis."""
        ratio = self.log_sd - other.log_sd
        shift = (self.mean - other.mean) * (-other.log_sd).exp()
        return (0.5 * ((2 * ratio).exp() + shift.square() - 1) - ratio).sum(-1)


def split_gaussian(parameters: Tensor) -> DiagonalGaussian:
    """Make a Gaussian of network outputs [..., 2 N], with the log sd clamped."""
    mean, log_sd = parameters.chunk(2, -1)
    return DiagonalGaussian(mean, log_sd.clamp(-LOG_SD_LIMIT, LOG_SD_LIMIT))


def standard_normal(width: int, like: Tensor) -> DiagonalGaussian:
    """N(0, I) of a width, on the device and of the type of a tensor."""
    zero = like.new_zeros(width)
    return DiagonalGaussian(zero, zero)


ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "tanh": nn.Tanh, "relu": nn.ReLU}


class Mlp(nn.Module):
    """A perceptron of one or several inputs, whose first layer is a sum of linear maps of each.

    That is a perceptron of their concatenation, but an input without the samples' axis is not repeated along it: data
    [B, D] beside latents [K, B, N].

    Args:
        inputs: widths of the inputs.
        hidden: widths of the hidden layers; none: a linear map.
        outputs: width of the output.
        generator: of the first weights.
        activation: a name in ACTIVATIONS.
        scale: what the last layer's first weights are multiplied by; 1 for features that others read.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        hidden: Sequence[int],
        outputs: int,
        generator: torch.Generator,
        activation: str = "silu",
        scale: float = _OUTPUT_SCALE,
    ) -> None:
        super().__init__()
        widths = [*hidden, outputs]
        with torch.device("meta"):
            self.first = nn.ModuleList([nn.Linear(n, widths[0], bias=not i) for i, n in enumerate(inputs)])
            rest: list[nn.Module] = []
            for before, after in zip(widths, widths[1:], strict=False):
                rest += [ACTIVATIONS[activation](), nn.Linear(before, after)]
            self.rest = nn.Sequential(*rest)
        self.to_empty(device="cpu")
        initialise(self, generator)
        with torch.no_grad():
            for layer in [rest[-1]] if rest else self.first:
                layer.weight.mul_(scale)  # type: ignore[operator]

    @property
    def output(self) -> nn.Linear:
        """The last layer; of a linear map the first input's part, which has the bias."""
        layer = self.rest[-1] if len(self.rest) else self.first[0]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs [..., n_i], which broadcast, to outputs [..., outputs]."""
        found = self.first[0](inputs[0])
        for layer, value in zip(list(self.first)[1:], inputs[1:], strict=True):
            found = found + layer(value)
        result: Tensor = self.rest(found)
        return result


class StackedMlp(nn.Module):
    """L perceptrons side by side, each with inputs of its own, every layer of them all one batched product.

    Inputs and outputs are as wide as the widest needs: narrower ones are padded with zeros, which get no gradient.

    Args:
        nets: perceptrons of the same hidden widths, activation and number of inputs, whose weights are taken over.
    """

    def __init__(self, nets: Sequence[Mlp]) -> None:
        super().__init__()
        self.activations = nn.ModuleList([m for m in nets[0].rest if not isinstance(m, nn.Linear)])
        firsts = list(zip(*(_linear(net.first) for net in nets), strict=True))  # by input, then by net
        rest = list(zip(*(_linear(net.rest) for net in nets), strict=True))
        self.first = nn.ParameterList([_stack([m.weight.mT for m in layers]) for layers in firsts])
        self.rest = nn.ParameterList([_stack([m.weight.mT for m in layers]) for layers in rest])
        self.biases = nn.ParameterList([_stack([m.bias[None] for m in layers]) for layers in (firsts[0], *rest)])

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs to outputs [L, K, B, outputs]; the first is [L, K, B, n_1], the others may be [L, B, n_i]."""
        found: Tensor | None = None
        for value, weight in zip(inputs, self.first, strict=True):
            value = value[..., : weight.shape[1]]  # a code of another layer may be wider: zeros here
            flat = value.flatten(1, -2)
            part = torch.baddbmm(self.biases[0], flat, weight) if found is None else torch.bmm(flat, weight)
            part = part.reshape(*value.shape[:-1], -1)
            found = part if found is None else found + (part if part.ndim == found.ndim else part[:, None])
        assert found is not None
        shape = found.shape[:-1]
        found = found.flatten(1, -2)
        for activation, weight, bias in zip(self.activations, self.rest, list(self.biases)[1:], strict=True):
            found = torch.baddbmm(bias, activation(found), weight)
        return found.reshape(*shape, -1)

    def alone(self, number: int, *inputs: Tensor) -> Tensor:
        """Map inputs [..., n_i] by one of the perceptrons to [..., outputs]."""
        found: Tensor = self.biases[0][number, 0]
        for weight, value in zip(self.first, inputs, strict=True):
            found = found + value @ weight[number, : value.shape[-1]]
        for activation, weight, bias in zip(self.activations, self.rest, list(self.biases)[1:], strict=True):
            found = activation(found) @ weight[number] + bias[number, 0]
        return found


def pad(values: Sequence[Tensor]) -> Tensor:
    """Stack tensors of the same shape but for the last axis, [..., n_l] to [L, ..., max n_l], narrower ones with zeros."""
    widest = max(value.shape[-1] for value in values)
    if all(value.shape[-1] == widest for value in values):
        return torch.stack(list(values))
    return torch.stack([nn.functional.pad(value, (0, widest - value.shape[-1])) for value in values])


def _linear(layers: Iterable[nn.Module]) -> list[nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


def _stack(weights: Sequence[Tensor]) -> nn.Parameter:
    """Stack matrices, smaller ones with rows and columns of zeros."""
    rows, columns = (max(weight.shape[axis] for weight in weights) for axis in (0, 1))
    found = torch.zeros(len(weights), rows, columns)
    for number, weight in enumerate(weights):
        found[number, : weight.shape[0], : weight.shape[1]] = weight.detach()
    return nn.Parameter(found)


class StackedEncoder(nn.Module):
    """L perceptrons that see the same x, each through a mask of its own, as one batched product.

    Args:
        masks: [L, D], 1 where perceptron l sees an entry, else 0.
        hidden: widths of its layers, the last of which is the output's; every layer ends in the activation.
        generator: of the first weights.
        activation: a name in ACTIVATIONS.
    """

    def __init__(
        self, masks: Tensor, hidden: Sequence[int], generator: torch.Generator, activation: str = "silu"
    ) -> None:
        super().__init__()
        count, width = masks.shape
        self.masks: Tensor
        self.register_buffer("masks", masks[:, :, None].float(), persistent=False)
        self.whole = bool((masks == 1).all())
        self.activation = ACTIVATIONS[activation]()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in zip([width, *hidden], hidden, strict=False):
            bound = 1 / math.sqrt(before)
            self.weights.append(torch.empty(count, before, after).uniform_(-bound, bound, generator=generator))
            self.biases.append(torch.empty(count, 1, after).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Encode x [B, D] to [L, B, H]."""
        value = x.expand(len(self.masks), -1, -1)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            seen = weight if number or self.whole else weight * self.masks.to(weight.dtype)
            value = self.activation(torch.baddbmm(bias, value, seen))
        return value
