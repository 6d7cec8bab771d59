"""Classifiers that take inputs in their original scale: normalisation is their first layer.

So noise that is added to an input, and a radius around it, are in the units of the input (pixels in [0, 1]).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.errors import InputError
from lightning_modules.networks import initialise

CLASSIFIERS = ("linear", "mlp", "small-cnn", "lenet", "resnet110", "resnet50")

_HIDDEN = 64
_LENET_SMALLEST = 16


class NormalizeLayer(nn.Module):
    """Computes (x - mean) / std for each channel of images [B, C, H, W], or each feature of [B, C].

    Its numbers are settings, not weights, and stay out of the state dict: a published checkpoint loads as it is.

    Args:
        mean: C numbers, in the inputs' units.
        std: C positive numbers.
        dimensions: of one example, 3 for images and 1 for features.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], dimensions: int = 3) -> None:
        super().__init__()
        shape = (-1, *[1] * (dimensions - 1))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(shape), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise."""
        return (inputs - self.mean) / self.std


class LeNet(nn.Module):
    """20 and 50 5x5 convolutions, each with 2x2 max pooling, then 500 hidden units.

    Source: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998, in the widths that papers on
    smoothing use for MNIST.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, *sides = input_shape
        last = [((side - 4) // 2 - 4) // 2 for side in sides]
        self.normalize: nn.Module = nn.Identity()
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * math.prod(last), 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits [B, classes] of images [B, C, H, W]."""
        # Pooling before the ReLU gives the same numbers and leaves the ReLU a quarter of the work.
        values = F.relu(F.max_pool2d(self.conv1(self.normalize(inputs)), 2))
        values = F.relu(F.max_pool2d(self.conv2(values), 2))
        logits: Tensor = self.fc2(F.relu(self.fc1(values.flatten(1))))
        return logits


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, inputs: Tensor) -> Tensor:
        shortcut = inputs if self.downsample is None else self.downsample(inputs)
        values = F.relu(self.bn1(self.conv1(inputs)), inplace=True)
        values = self.bn2(self.conv2(values))
        return F.relu(values + shortcut, inplace=True)


class _Bottleneck(nn.Module):
    """1x1, 3x3 (which has the stride) and 1x1 convolutions around a shortcut."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = downsample

    def forward(self, inputs: Tensor) -> Tensor:
        shortcut = inputs if self.downsample is None else self.downsample(inputs)
        values = F.relu(self.bn1(self.conv1(inputs)), inplace=True)
        values = F.relu(self.bn2(self.conv2(values)), inplace=True)
        values = self.bn3(self.conv3(values))
        return F.relu(values + shortcut, inplace=True)


class ResNet(nn.Module):
    """A residual network: a stem, stages of blocks that halve the image from the second stage on, the mean over pixels.

    Names in the state dict are those of published checkpoints: conv1, bn1, layer1.0.conv1, layer2.0.downsample.0, fc.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385, section 4.1 and 4.2.

    Args:
        block: class of the blocks.
        blocks: number of blocks of each stage.
        width: channels of the first stage's 3x3 convolutions, doubled in each further stage.
        channels: of the images.
        classes: number of logits.
        large: the stem for large images (7x7 of stride 2 and 3x3 max pooling of stride 2), else one 3x3 convolution.
    """

    def __init__(
        self,
        block: type[_BasicBlock] | type[_Bottleneck],
        blocks: Sequence[int],
        width: int,
        channels: int,
        classes: int,
        large: bool,
    ) -> None:
        super().__init__()
        self.normalize: nn.Module = nn.Identity()
        self._large = large
        self.conv1 = nn.Conv2d(channels, width, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self._stages = [f"layer{index + 1}" for index in range(len(blocks))]
        channels = width
        for index, (name, count) in enumerate(zip(self._stages, blocks, strict=True)):
            stage = nn.Sequential()
            for place in range(count):
                stride = 2 if index > 0 and place == 0 else 1
                wide = width * 2**index * block.expansion
                downsample = None
                if stride > 1 or channels != wide:
                    downsample = nn.Sequential(nn.Conv2d(channels, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))
                stage.append(block(channels, width * 2**index, stride, downsample))
                channels = wide
            self.add_module(name, stage)
        self.fc = nn.Linear(channels, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits [B, classes] of images [B, C, H, W]."""
        values = F.relu(self.bn1(self.conv1(self.normalize(inputs))), inplace=True)
        if self._large:
            values = F.max_pool2d(values, 3, 2, padding=1)
        for name in self._stages:
            values = self.get_submodule(name)(values)
        logits: Tensor = self.fc(values.mean((2, 3)))
        return logits


def build_classifier(
    name: str,
    input_shape: Sequence[int],
    classes: int,
    generator: torch.Generator,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Build and initialise a classifier: inputs in their original scale [B, *input_shape] to logits [B, classes].

    Args:
        name: "linear"; "mlp" (two hidden layers of 64 ReLU units); "small-cnn" (3x3 convolutions of stride 2 with 16
            and 32 channels, then linear); "lenet" (`LeNet`); "resnet110" (CIFAR's, `ResNet` with 18 basic blocks in
            each of three stages of 16, 32 and 64 channels); "resnet50" (ImageNet's, bottleneck blocks).
        input_shape: of one example: [channels, height, width] of an image, [d] of features.
        classes: number of logits.
        generator: source of the initial weights; the network depends on nothing else.
        mean: for each channel or feature, what the first layer subtracts; no normalisation without.
        std: what it then divides by.

    Returns:
        The network, on the CPU and in train mode.

    Raises:
        InputError: for an unknown name, a shape the network cannot take, or a normalisation that does not fit.
    """
    shape = tuple(input_shape)
    check_classifier(name, shape, classes, mean, std)
    with torch.device("meta"):  # no memory and no draw from the global generator before `initialise`
        network = _build(name, shape, classes)
    network.to_empty(device="cpu")
    initialise(network, generator, he=name.startswith("resnet"))
    if mean is not None and std is not None:
        network.normalize = NormalizeLayer(mean, std, len(shape))
    if name == "lenet":  # more than twice as fast on a CPU; activations follow the weights
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def check_classifier(
    name: str,
    input_shape: tuple[int, ...],
    classes: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """Raise InputError for what `build_classifier` cannot build."""
    if name not in CLASSIFIERS:
        raise InputError(f"network: unknown {name!r}; choose one of {', '.join(CLASSIFIERS)}")
    if len(input_shape) not in (1, 3) or min(input_shape) < 1:
        raise InputError(f"input_shape: {list(input_shape)} is neither [channels, height, width] nor [features]")
    if name not in ("linear", "mlp") and len(input_shape) != 3:
        raise InputError(f"network: {name} needs images [channels, height, width], got {list(input_shape)}; use mlp")
    if name == "lenet" and min(input_shape[1:]) < _LENET_SMALLEST:
        raise InputError(
            f"network: lenet needs images of at least {_LENET_SMALLEST}x{_LENET_SMALLEST} pixels, "
            f"got {list(input_shape)}; use small-cnn"
        )
    if classes < 2:
        raise InputError(f"classes: {classes} is too few; give 2 or more")
    if (mean is None) != (std is None):
        raise InputError(f"{'mean' if mean is None else 'std'}: is missing; give both mean and std, or neither")
    for field, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        if len(values) != input_shape[0]:
            raise InputError(f"{field}: has {len(values)} numbers; give {input_shape[0]}, one a channel or feature")
        if not all(math.isfinite(value) for value in values) or (field == "std" and min(values) <= 0):
            raise InputError(f"{field}: {list(values)} must be finite{' and positive' if field == 'std' else ''}")


def _build(name: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    if name == "lenet":
        return LeNet(shape, classes)
    if name == "resnet110":
        return ResNet(_BasicBlock, (18, 18, 18), 16, shape[0], classes, large=False)
    if name == "resnet50":
        return ResNet(_Bottleneck, (3, 4, 6, 3), 64, shape[0], classes, large=True)
    size = math.prod(shape)
    layers: OrderedDict[str, nn.Module] = OrderedDict(normalize=nn.Identity())
    if name == "small-cnn":
        layers["conv1"] = nn.Conv2d(shape[0], 16, 3, stride=2, padding=1)
        layers["relu1"] = nn.ReLU()
        layers["conv2"] = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        layers["relu2"] = nn.ReLU()
        size = 32 * math.prod((side + 3) // 4 for side in shape[1:])
    layers["flatten"] = nn.Flatten()
    if name == "mlp":
        layers["fc1"] = nn.Linear(size, _HIDDEN)
        layers["relu1"] = nn.ReLU()
        layers["fc2"] = nn.Linear(_HIDDEN, _HIDDEN)
        layers["relu2"] = nn.ReLU()
        size = _HIDDEN
    layers["fc"] = nn.Linear(size, classes)
    return nn.Sequential(layers)
