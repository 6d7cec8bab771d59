"""`shiftlab certify train`: a classifier trained on noisy examples, saved for `shiftlab certify smoothing`."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.errors import InputError
from cluster.progress import format_duration
from cluster.signals import Interrupted, StopRequest
from jobs.command import command, command_line

EXAMPLES = """
shiftlab certify train --data MNIST --sigma 0.5 --out runs/digits.ckpt
shiftlab certify train --data MNIST --sigma 0.5 --regulariser consistency --lam 5 --out runs/consistent.ckpt
shiftlab certify train --data cifar-10-batches-py --network resnet110 --sigma 0.25 --epochs 90 --batch_size 400 --augment --accelerator auto --out cifar.ckpt
"""


@dataclass
class Train:
    """Train a classifier on noisy examples: certify it with the same sigma afterwards.

    The checkpoint is written after every epoch; an interrupted training goes on with the same command, and the file is
    what `shiftlab certify smoothing --model` takes.

    Args:
        data: as for `shiftlab certify smoothing`; its training part is taken.
        sigma: standard deviation of the noise, in the inputs' units (pixels: 0 to 1); 0 trains without noise.
        out: checkpoint to write (.ckpt).
        network: linear, mlp, small-cnn, lenet, resnet110 or resnet50; null takes small-cnn for images, mlp for features.
        regulariser: none, consistency, smoothadv or macer.
        lam: weight of consistency and macer.
        eta: weight of consistency's entropy.
        gamma: margin of macer.
        draws: noise draws of an example a step.
        epsilon: radius of smoothadv's attack, in the inputs' units.
        attack_steps: steps of that attack.
        warmup_epochs: epochs until epsilon has its value.
        epochs: passes over the examples.
        batch_size: examples a step.
        optimizer: adam or sgd.
        lr: learning rate; null takes 1e-3 for adam (0.002 for small-cnn), 0.1 for sgd.
        momentum: of sgd; null takes 0.9.
        weight_decay: l2 penalty; null takes 0 for adam, 1e-4 for sgd.
        lr_step: epochs after which the rate is multiplied by lr_gamma; null takes 30 for sgd, never for adam.
        lr_gamma: that factor; null takes 0.1.
        augment: crop at random and mirror images, before the noise is added.
        part: which examples to train on; data without parts need "all".
        image_size: side of a folder's images in pixels.
        num_classes: where the data do not name all classes.
        accelerator: cpu, or auto for a GPU where there is one.
        max_minutes: stop after that long, keeping the checkpoint.
        seed: of the weights, the order of the examples and the noise.
    """

    data: str
    sigma: float
    out: str
    network: str | None = None
    regulariser: Literal["none", "consistency", "smoothadv", "macer"] = "none"
    lam: float | None = None
    eta: float | None = None
    gamma: float | None = None
    draws: int | None = None
    epsilon: float | None = None
    attack_steps: int | None = None
    warmup_epochs: int | None = None
    epochs: int = 10
    batch_size: int = 64
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    lr_step: int | None = None
    lr_gamma: float | None = None
    augment: bool = False
    part: Literal["train", "all"] = "train"
    image_size: int | None = None
    num_classes: int | None = None
    accelerator: Literal["cpu", "auto"] = "cpu"
    max_minutes: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.out.endswith(".ckpt") or "://" in self.out:
            raise InputError(f"out: {self.out!r} is no local path that ends in .ckpt; give one")


def run(options: Train) -> int:
    """Train; 0 when the classifier is trained, 130 or 143 when stopped before."""
    began = time.monotonic()
    with StopRequest() as stop, contextlib.suppress(Interrupted), stop.interruptible():
        accuracy = _train(options)
        took = format_duration(time.monotonic() - began)
        print(f"{options.out}: training accuracy under noise {accuracy:.3f} after {options.epochs} epochs, in {took}")
        data = f"--data {options.data} --sigma {options.sigma:g}"
        if options.sigma:
            print(
                f"certify it with\n  shiftlab certify smoothing --model {options.out} {data} --adaptive --run runs/certified"
            )
        return 0
    print(f"stopped: resume with\n  {command_line('shiftlab certify train', options)}", file=sys.stderr)
    return stop.exit_code


def _train(options: Train) -> float:
    import torch

    from lightning_modules.certification.training import NoiseAugmentedClassifier, fit_classifier
    from lightning_modules.data.examples import load_examples

    examples = load_examples(options.data, options.part, image_size=options.image_size, num_classes=options.num_classes)
    shape = examples.inputs.shape[1:]
    network = options.network or ("small-cnn" if len(shape) == 3 else "mlp")
    lr = options.lr
    if lr is None and network == "small-cnn" and options.optimizer == "adam":
        lr = 0.002
    names = [*("lam", "eta", "gamma", "draws", "epsilon", "attack_steps", "warmup_epochs")]
    names += ["momentum", "weight_decay", "lr_step", "lr_gamma"]
    module = NoiseAugmentedClassifier(
        network,
        shape,
        len(examples.classes),
        options.sigma,
        options.regulariser,
        optimizer=options.optimizer,
        lr=lr,
        augment=options.augment,
        seed=options.seed,
        **{name: getattr(options, name) for name in names},
    )
    try:
        Path(options.out).absolute().parent.mkdir(parents=True, exist_ok=True)
        fit_classifier(
            module,
            torch.from_numpy(examples.inputs.copy()),
            torch.from_numpy(examples.labels.copy()),
            epochs=options.epochs,
            batch_size=options.batch_size,
            seed=options.seed,
            max_seconds=None if options.max_minutes is None else 60 * options.max_minutes,
            progress=sys.stderr.isatty(),
            checkpoint=options.out,
            accelerator=options.accelerator,
        )
    except OSError as error:
        raise InputError(
            f"out: cannot write {options.out!r} ({error.strerror or error}); choose another place"
        ) from None
    return module.epoch_means().get("train_accuracy", math.nan)


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return command(Train, run, argv, prog="shiftlab certify train", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
