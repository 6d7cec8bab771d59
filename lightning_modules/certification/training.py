"""Trains classifiers that keep their answer under Gaussian noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_modules.certification.attacks import draw_logits, smoothed_pgd
from lightning_modules.certification.fitting import checked_inputs, fit
from lightning_modules.certification.noisy_module import NoisyModule, stream_seed
from lightning_modules.certification.regularisers import REGULARISERS, consistency_loss, macer_loss, noise_loss, resolve
from lightning_modules.errors import InputError
from lightning_modules.networks import as_floats
from lightning_modules.vision_networks import build_classifier

_MACER_SGD: dict[str, float | None] = {"lr": 0.01, "weight_decay": 5e-4, "lr_step": 200}

_CROP = 4


class NoiseAugmentedClassifier(NoisyModule):
    """Trains a classifier on noisy inputs, with or without a regulariser that widens its certified radii.

    The noise is fresh in every step, drawn after augmentation, in the inputs' units, and nothing is clipped. Train with
    the sigma that certification will use.

    - "none": mean cross-entropy over the draws (Cohen et al., ICML 2019, arXiv 1902.02918). SGD with lr 0.1, momentum
      0.9, weight decay 1e-4 and the rate divided by 10 every 30 epochs are the paper's.
    - "consistency": `consistency_loss`. 2 draws and eta 0.5 are the paper's, as is lam 10, which is its choice on MNIST
      at sigma 0.25 (5 at 0.5 and 1) and on CIFAR-10 at 0.5 and 1 (20 at 0.25).
    - "smoothadv": cross-entropy under noise around the inputs that `smoothed_pgd` finds with the same draws, in eval
      mode; epsilon grows linearly to its value over warmup_epochs. The warm-up of 10 epochs is the paper's; it tries
      epsilon 64, 127, 255 and 512 (/256), 2 to 10 steps and 1 to 8 draws: the choice among them is ours.
    - "macer": `macer_loss`. 16 draws, lam 12, gamma 8, lr 0.01, weight decay 5e-4 and the rate divided by 10 every 200
      epochs are the authors' for CIFAR-10 at sigma 0.25.

    Args:
        network: a name of `CLASSIFIERS`.
        input_shape: of one example: [channels, height, width] in [0, 1], or [d].
        classes: number of logits.
        sigma: standard deviation of the noise in the inputs' units; 0 trains without noise.
        regulariser: a name of `REGULARISERS`.
        lam: weight of the regulariser (consistency, macer).
        eta: weight of the entropy (consistency).
        gamma: margin of the hinge (macer).
        draws: noise draws per image and step.
        epsilon: radius of the attack's ball in the inputs' units (smoothadv).
        attack_steps: gradients of an attack (smoothadv).
        warmup_epochs: epochs until epsilon has its value; 0 for at once (smoothadv).
        optimizer: "sgd" or "adam"; Adam's defaults are lr 1e-3 and a constant rate.
        lr: learning rate.
        momentum: of SGD.
        weight_decay: l2 penalty.
        lr_step: epochs after which the rate is multiplied by lr_gamma, again and again.
        lr_gamma: that factor.
        seed: of the initial weights, the augmentation and the noise.
        mean: what the network's first layer subtracts from each channel.
        std: what it divides by.
        augment: crop at random after padding 4 zeros, and flip every second image (images only).

    Raises:
        InputError: for an unknown name, a value out of range, or an option that has no effect with the regulariser,
            with the optimizer or without noise.
    """

    def __init__(
        self,
        network: str,
        input_shape: Sequence[int],
        classes: int,
        sigma: float,
        regulariser: str = "none",
        *,
        lam: float | None = None,
        eta: float | None = None,
        gamma: float | None = None,
        draws: int | None = None,
        epsilon: float | None = None,
        attack_steps: int | None = None,
        warmup_epochs: int | None = None,
        optimizer: str = "sgd",
        lr: float | None = None,
        momentum: float | None = None,
        weight_decay: float | None = None,
        lr_step: int | None = None,
        lr_gamma: float | None = None,
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augment: bool = False,
    ) -> None:
        rates = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "lr_step": lr_step, "lr_gamma": lr_gamma}
        own_rates = _MACER_SGD if (regulariser, optimizer) == ("macer", "sgd") else {}
        super().__init__(sigma, seed, optimizer, rates, own_rates)
        if regulariser not in REGULARISERS:
            raise InputError(f"regulariser: unknown {regulariser!r}; choose one of {', '.join(REGULARISERS)}")
        given = {"lam": lam, "eta": eta, "gamma": gamma, "draws": draws}
        given |= {"epsilon": epsilon, "attack_steps": attack_steps, "warmup_epochs": warmup_epochs}
        self.regulariser = regulariser
        self.options: dict[str, Any] = resolve(given, REGULARISERS[regulariser], f"regulariser {regulariser!r}")
        if regulariser == "consistency" and self.options["draws"] < 2:
            raise InputError("draws: consistency compares draws; give 2 or more")
        if self.sigma == 0 and regulariser in ("consistency", "macer"):
            raise InputError(f"regulariser: {regulariser} has no effect without noise; give a sigma above 0, or 'none'")
        if self.sigma == 0:
            if draws is not None:
                raise InputError("draws: has no effect without noise; leave it out, or give a sigma above 0")
            self.options["draws"] = 1
        if augment and len(input_shape) != 3:
            raise InputError(f"augment: crops and flips images, but input_shape is {list(input_shape)}; leave it out")
        self.input_shape, self.classes, self.augment = tuple(input_shape), classes, augment
        self._description = {
            "network": network,
            "input_shape": [int(size) for size in input_shape],
            "classes": int(classes),
            "options": {
                "mean": None if mean is None else [float(value) for value in mean],
                "std": None if std is None else [float(value) for value in std],
            },
            "sigma": self.sigma,
            "regulariser": regulariser,
        }
        generator = torch.Generator().manual_seed(stream_seed(seed, 0))
        self.network = build_classifier(network, input_shape, classes, generator, mean, std)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits [B, classes] of inputs as they are; uint8 pixels are scaled to [0, 1]."""
        logits: Tensor = self.network(as_floats(inputs))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of one step from inputs [B, ...] and labels [B]."""
        inputs, labels = batch
        if self.augment:
            inputs = crop_and_flip(inputs, self.generator())
        noisy = self._noisy_inputs(as_floats(inputs), labels)
        logits = draw_logits(self.network, noisy)
        o = self.options
        if self.regulariser == "consistency":
            loss = consistency_loss(logits, labels, o["lam"], o["eta"])
        elif self.regulariser == "macer":
            loss = macer_loss(logits, labels, self.sigma, o["lam"], o["gamma"])
        else:
            loss = noise_loss(logits, labels)
        with torch.no_grad():
            accuracy = (logits.argmax(-1) == labels).float().mean()
        self.record(len(labels), train_loss=loss.detach(), train_accuracy=accuracy)
        return loss

    def _noisy_inputs(self, inputs: Tensor, labels: Tensor) -> Tensor:
        draws = int(self.options["draws"])
        if self.regulariser != "smoothadv":
            return self.noisy(draws, inputs)
        o, noise = self.options, self.standard_normal(draws, inputs)
        epsilon = o["epsilon"] * min(1.0, (self.current_epoch + 1) / max(1, o["warmup_epochs"]))
        clip = (0.0, 1.0) if len(self.input_shape) == 3 else None
        mode = self.network.training
        self.network.eval()  # else batch norm mixes the attacked images, and remembers them once a step
        attacked = smoothed_pgd(self.network, inputs, labels, self.sigma, epsilon, o["attack_steps"], noise, clip=clip)
        self.network.train(mode)
        return noise.mul_(self.sigma).add_(attacked)

    def settings(self) -> dict[str, Any]:
        """All that decides this training apart from the data, as plain values."""
        return {**self._description, **super().settings(), **self.options, "augment": self.augment}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the network, beside the settings and the generator's state."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["shiftlab_classifier"] = self._description


def fit_classifier(
    module: NoiseAugmentedClassifier,
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    max_seconds: float | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    accelerator: str = "cpu",
) -> NoiseAugmentedClassifier:
    """Train on examples in memory; on a CPU the weights depend on the arguments alone.

    Args:
        module: what is trained, in place.
        inputs: [n, *input_shape]: uint8 pixels, which are scaled when used, or floats.
        labels: [n] class indices.
        epochs: passes over the examples.
        batch_size: examples per step; the last step of an epoch takes the rest.
        seed: of the order of the examples.
        max_seconds: stops after the step in which this much time has passed; None for no limit.
        progress: show a progress bar.
        checkpoint: file to write after every epoch and at the end; if it is there already, training goes on from it,
            and ends in the same weights as without the interruption.
        accelerator: "cpu", or "auto" for a GPU where there is one.

    Returns:
        The module, in eval mode and on the CPU.

    Raises:
        InputError: for examples that do not fit the module, values out of range, or a checkpoint of another training.
        FloatingPointError: when the loss stops being finite.
    """
    inputs = checked_inputs(inputs, module.input_shape)
    if labels.shape != inputs.shape[:1] or labels.dtype != torch.long:
        raise InputError(f"labels: {labels.dtype} {list(labels.shape)}; give int64 [{len(inputs)}], one for each input")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= module.classes:
        raise InputError(f"labels: reach from {lowest} to {highest}; give 0 to {module.classes - 1}")
    fit(
        module,
        (inputs, labels),
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        max_seconds=max_seconds,
        progress=progress,
        checkpoint=checkpoint,
        accelerator=accelerator,
    )
    return module


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pad images [B, C, H, W] by 4 zeros, crop each at random to its old size, and mirror it with probability 1/2."""
    count, channels, height, width = images.shape
    device = images.device
    top, left = torch.randint(2 * _CROP + 1, (2, count, 1), generator=generator, device=device)
    mirrored = torch.randint(2, (count, 1), generator=generator, device=device, dtype=torch.bool)
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(count, width)
    columns = left + torch.where(mirrored, columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, (_CROP,) * 4)
    batch = torch.arange(count, device=device)[:, None, None, None]
    plane = torch.arange(channels, device=device)[:, None, None]
    return padded[batch, plane, rows[:, None, :, None], columns[:, None, None, :]]
