"""Networks that methods train: a featurizer and a linear classifier, initialised from a generator of their own."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.errors import InputError

NETWORKS = ("linear", "mlp", "small-cnn", "cnn")

CONVOLUTIONAL = ("small-cnn", "cnn")
"""Those that need images."""

_HIDDEN = 64


class Network(nn.Module):
    """Maps examples to features and logits.

    Args:
        featurizer: [n, ...] to features [n, d].
        classifier: features [n, d] to logits [n, C].
    """

    def __init__(self, featurizer: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.featurizer = featurizer
        self.classifier = classifier

    def forward(self, inputs: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Compute (hidden layers [n, d_l], logits [n, C]); uint8 inputs are pixels and are scaled to [0, 1].

        The last hidden layer is what the classifier sees; of a convolutional network it is the only one.
        """
        layers = hidden_layers(self.featurizer, as_floats(inputs))
        return layers, self.classifier(layers[-1])


@torch.no_grad()
def outputs(network: Network, inputs: np.ndarray, rows: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, d] and logits [n, C] of inputs [n, ...], some rows at a time."""
    parts = [network(torch.from_numpy(inputs[start : start + rows])) for start in range(0, len(inputs), rows)]
    features, logits = (torch.cat(part).numpy() for part in zip(*((p[0][-1], p[1]) for p in parts), strict=True))
    return features, logits


def as_floats(inputs: Tensor) -> Tensor:
    """Scale pixels (uint8) to [0, 1]; anything else stays as it is."""
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs


def hidden_layers(featurizer: nn.Module, values: Tensor) -> tuple[Tensor, ...]:
    """Apply a featurizer; returns what comes after each ReLU of a stack of linear layers, else its output alone."""
    children = list(featurizer.children())
    if not all(isinstance(child, nn.Flatten | nn.Linear | nn.ReLU) for child in children) or not children:
        return (featurizer(values),)
    layers = []
    for child in children:
        values = child(values)
        if isinstance(child, nn.ReLU):
            layers.append(values)
    return tuple(layers)


def build_network(name: str, input_shape: tuple[int, ...], classes: int, generator: torch.Generator) -> Network:
    """Build and initialise a network.

    Args:
        name: "linear" (features are the flattened input), "mlp" (two hidden layers of 64 ReLU units), "small-cnn" (3x3
            convolutions of 32 and 64 channels, each with 2x2 max pooling, then 64 ReLU units: a fifth of the work of
            "cnn" on digits) or "cnn" (DomainBed's network for digits: four 3x3 convolutions with group norm, mean over
            pixels, 128 features).
        input_shape: shape of one example.
        classes: number of logits.
        generator: source of the initial weights; the network depends on nothing else.

    Raises:
        InputError: for an unknown name, or a cnn on examples that are not images.
    """
    check_network(name, input_shape)
    size = math.prod(input_shape)
    with torch.device("meta"):  # no memory and no draw from the global generator before `initialise`
        if name == "linear":
            network = Network(nn.Flatten(), nn.Linear(size, classes))
        elif name == "mlp":
            layers = (nn.Flatten(), nn.Linear(size, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU())
            network = Network(nn.Sequential(*layers), nn.Linear(_HIDDEN, classes))
        elif name == "small-cnn":
            network = Network(_pooled_convolutions(input_shape), nn.Linear(_HIDDEN, classes))
        else:
            network = Network(_convolutions(input_shape[0]), nn.Linear(128, classes))
    network.to_empty(device="cpu")
    initialise(network, generator)
    return network


def check_network(name: str, input_shape: tuple[int, ...]) -> None:
    """Raise InputError for an unknown network, or a cnn on examples that are not images [channels, height, width]."""
    if name not in NETWORKS:
        raise InputError(f"network: unknown {name!r}; choose one of {', '.join(NETWORKS)}")
    if name in CONVOLUTIONAL and len(input_shape) != 3:
        raise InputError(f"network: {name} needs images [channels, height, width], got {input_shape}; use mlp")
    if name == "small-cnn" and min(input_shape[1:]) < 4:
        raise InputError(f"network: small-cnn needs images of 4x4 pixels or more, got {input_shape}; use mlp")


def _pooled_convolutions(shape: tuple[int, ...]) -> nn.Module:
    """Two 3x3 convolutions with pooling, and a hidden layer."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for width in (32, 64):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        channels = width
    size = channels * math.prod(side // 4 for side in shape[1:])
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, _HIDDEN), nn.ReLU())


def _convolutions(channels: int) -> nn.Module:
    """DomainBed's MNIST_CNN: 64, 128 (stride 2), 128, 128 channels, group norm of 8 groups after each."""
    layers: list[nn.Module] = []
    for width, stride in ((64, 1), (128, 2), (128, 1), (128, 1)):
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1), nn.ReLU(), nn.GroupNorm(8, width)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator, he: bool = False) -> None:
    """Draw a network's first weights from `generator`, and set its normalisation layers to the identity.

    Weights and biases have PyTorch's own law, uniform in +-1/sqrt(fan in).

    Args:
        network: holds linear layers, convolutions, group and batch norms; anything else is left as it is.
        generator: source of the weights.
        he: draw the weights of convolutions from N(0, 2 / fan out) instead (He et al., "Delving Deep into Rectifiers",
            arXiv 1502.01852, section 2.2, backward case).
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            if he and isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * math.prod(module.kernel_size)
                module.weight.normal_(0, math.sqrt(2 / fan_out), generator=generator)
            else:
                module.weight.uniform_(-bound, bound, generator=generator)
            if module.bias is not None:
                module.bias.uniform_(-bound, bound, generator=generator)
        elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
