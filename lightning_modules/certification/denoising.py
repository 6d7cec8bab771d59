"""Denoised smoothing: a denoiser before a classifier that was trained without noise, and the denoiser's training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.certification.fitting import checked_inputs, fit
from lightning_modules.certification.noisy_module import NoisyModule
from lightning_modules.errors import InputError
from lightning_modules.networks import as_floats, initialise

OBJECTIVES = ("mse", "stability")


class DenoisedClassifier(nn.Module):
    """Computes f(D(x)): smoothing it certifies a classifier f that itself never saw noise.

    Source: Salman et al., "Denoised Smoothing: A Provable Defense for Pretrained Classifiers", NeurIPS 2020,
    arXiv 2003.01908, section 3.

    Args:
        denoiser: D, noisy inputs to inputs of the same shape.
        classifier: f, inputs to logits.
    """

    def __init__(self, denoiser: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.classifier = classifier

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits [B, C] of noisy inputs [B, ...]."""
        logits: Tensor = self.classifier(self.denoiser(inputs))
        return logits


class Denoiser(nn.Module):
    """Subtracts from an image the noise that 3x3 convolutions find in it.

    The last convolution starts at zero, so that training starts from D(x) = x.

    Source: Zhang et al., "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising", IEEE TIP
    2017, arXiv 1608.03981, section III; there depth is 17 and width 64.

    Args:
        channels: of the images.
        depth: number of convolutions, 2 or more; batch norm follows all but the first and the last.
        width: channels between them.
        generator: source of the initial weights.

    Raises:
        InputError: for a size out of range.
    """

    def __init__(self, channels: int, depth: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        for name, value, lowest in (("channels", channels, 1), ("depth", depth, 2), ("width", width, 1)):
            if value < lowest:
                raise InputError(f"{name}: {value} is too few; give {lowest} or more")
        self.channels, self.depth, self.width = channels, depth, width
        with torch.device("meta"):
            layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            for _ in range(depth - 2):
                layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            last = nn.Conv2d(width, channels, 3, padding=1, bias=False)
            self.noise = nn.Sequential(*layers, last)
        self.noise.to_empty(device="cpu")
        initialise(self.noise, generator, he=True)
        nn.init.zeros_(last.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Denoise [B, C, H, W]."""
        cleaned: Tensor = images - self.noise(images)
        return cleaned


class DenoiserTraining(NoisyModule):
    """Trains a denoiser D on x + e, e ~ N(0, sigma^2 I) fresh in every step.

    - "mse": the mean over pixels of (D(x + e) - x)^2.
    - "stability": the cross-entropy of f(D(x + e)) against argmax f(x), f a frozen classifier; it needs no labels.

    Source: Salman et al., "Denoised Smoothing", NeurIPS 2020, arXiv 2003.01908, section 3. Adam's lr 1e-3 divided by
    10 every 30 epochs is the default of the authors' code.

    Args:
        denoiser: what is trained.
        sigma: standard deviation of the noise, in the inputs' units.
        objective: "mse" or "stability".
        classifier: f, for "stability" only. It is put in eval mode and gets no gradients.
        optimizer: "adam" or "sgd".
        lr: learning rate.
        momentum: of SGD.
        weight_decay: l2 penalty.
        lr_step: epochs after which the rate is multiplied by lr_gamma, again and again.
        lr_gamma: that factor.
        seed: of the noise.

    Raises:
        InputError: for an unknown objective, a missing or useless classifier, or a value out of range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sigma: float,
        objective: str = "mse",
        classifier: nn.Module | None = None,
        *,
        optimizer: str = "adam",
        lr: float | None = None,
        momentum: float | None = None,
        weight_decay: float | None = None,
        lr_step: int | None = None,
        lr_gamma: float | None = None,
        seed: int = 0,
    ) -> None:
        rates = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "lr_step": lr_step, "lr_gamma": lr_gamma}
        super().__init__(sigma, seed, optimizer, rates, {"lr": 1e-3, "weight_decay": 0.0, "lr_step": 30})
        if self.sigma == 0:
            raise InputError("sigma: 0 leaves nothing to denoise; give e.g. 0.25")
        if objective not in OBJECTIVES:
            raise InputError(f"objective: unknown {objective!r}; choose one of {', '.join(OBJECTIVES)}")
        if (classifier is None) == (objective == "stability"):
            mend = "is missing; give the classifier" if classifier is None else "has no effect; leave it out"
            raise InputError(f"classifier: with objective {objective!r} it {mend}")
        self.denoiser, self.objective = denoiser, objective
        self.classifier = None if classifier is None else classifier.requires_grad_(False).eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """Denoise [B, C, H, W]; uint8 pixels are scaled to [0, 1]."""
        cleaned: Tensor = self.denoiser(as_floats(inputs))
        return cleaned

    def train(self, mode: bool = True) -> DenoiserTraining:
        """Switch the denoiser's mode; the frozen classifier stays in eval mode."""
        super().train(mode)
        if self.classifier is not None:
            self.classifier.eval()
        return self

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Compute the loss of one step from inputs [B, C, H, W], the batch's first tensor."""
        inputs = as_floats(batch[0])
        cleaned = self.denoiser(self.noisy(1, inputs)[0])
        if self.classifier is None:
            loss = F.mse_loss(cleaned, inputs)
        else:
            with torch.no_grad():
                clean_prediction = self.classifier(inputs).argmax(1)
            loss = F.cross_entropy(self.classifier(cleaned), clean_prediction)
        self.record(len(inputs), train_loss=loss.detach())
        return loss

    def settings(self) -> dict[str, Any]:
        """All that decides this training apart from the data and the classifier, as plain values."""
        sizes = {"channels": self.denoiser.channels, "depth": self.denoiser.depth, "width": self.denoiser.width}
        return {**sizes, "objective": self.objective, **super().settings()}


def fit_denoiser(
    module: DenoiserTraining,
    inputs: Tensor,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    max_seconds: float | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    accelerator: str = "cpu",
) -> DenoiserTraining:
    """Train on images in memory, as `fit_classifier` does.

    Args:
        module: what is trained, in place.
        inputs: [n, C, H, W] uint8 pixels, which are scaled when used, or floats in [0, 1].
        epochs: passes over the images.
        batch_size: images per step.
        seed: of the order of the images.
        max_seconds: stops after the step in which this much time has passed; None for no limit.
        progress: show a progress bar.
        checkpoint: file to write after every epoch and at the end, and to go on from.
        accelerator: "cpu", or "auto" for a GPU where there is one.

    Returns:
        The module, in eval mode and on the CPU.

    Raises:
        InputError: for images that do not fit the denoiser, values out of range, or a checkpoint of another training.
        FloatingPointError: when the loss stops being finite.
    """
    inputs = checked_inputs(inputs)
    channels = module.denoiser.channels
    if inputs.ndim != 4 or inputs.shape[1] != channels:
        raise InputError(f"inputs: have shape {list(inputs.shape)}; give [n, {channels}, height, width]")
    fit(
        module,
        (inputs,),
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        max_seconds=max_seconds,
        progress=progress,
        checkpoint=checkpoint,
        accelerator=accelerator,
    )
    return module
