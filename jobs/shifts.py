"""`shiftlab shifts`: feature tables of shifted digits, of a network that `shiftlab train` trained."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import InputError
from jobs.command import command

if TYPE_CHECKING:
    from lightning_modules.networks import Network

EXAMPLES = """
shiftlab train --method ERM --dataset ShiftedDigits --held_out none --steps 400 --run runs/digits
shiftlab shifts --model runs/digits/models/TRIAL.ckpt --out shifts
shiftlab bound --source shifts/source.parquet --target shifts/targets.parquet --each_environment --run runs/bound
"""

SOURCE, TARGETS = "source.parquet", "targets.parquet"


@dataclass
class Shifts:
    """Write what a network makes of shifted digits: features, logits and labels, an environment a shift.

    The network was trained on the dataset ShiftedDigits (2,000 of 5,000 MNIST digits); 1,500 others are the labelled source, and 1,500
    the targets: rotated, blurred, noisy, of other contrast or colour, moved, covered, zoomed, of other shares of classes, or only
    the thin, thick, small or large ones.

    Args:
        model: RUN/models/TRIAL.ckpt of `shiftlab train --dataset ShiftedDigits`.
        out: folder for source.parquet and targets.parquet.
        seed: of the dealing of the digits; that of the dataset the network was trained on.
    """

    model: str
    out: str
    seed: int = 0


def run(options: Shifts) -> int:
    """Write the tables; returns 0."""
    import numpy as np

    from lightning_modules.data.shifted_digits import DealtDigits, digit_shifts
    from lightning_modules.data.tables import write_table
    from lightning_modules.networks import outputs

    network = read_network(options.model, f"ShiftedDigits(seed={options.seed},", (1, 28, 28), 10)
    dealt = DealtDigits.deal(options.seed)
    folder = Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: cannot make {options.out!r} ({error.strerror}); choose another --out") from None
    images, labels = dealt.source
    features, logits = outputs(network, images[:, None])
    write_table(folder / SOURCE, features, labels, np.full(len(labels), "source"), logits=logits)
    parts = []
    for shift in digit_shifts():
        images, labels = dealt.shifted(shift)
        parts.append((*outputs(network, images[:, None]), labels, np.full(len(labels), shift.name)))
        wrong = float((parts[-1][1].argmax(1) != labels).mean())
        print(f"{shift.name:<18} {len(labels):>5} rows, error {wrong:.3f}")
    features, logits, labels, names = (np.concatenate(column) for column in zip(*parts, strict=True))
    write_table(folder / TARGETS, features, labels, names, logits=logits)
    print(
        f"{folder / SOURCE} and {folder / TARGETS} written; bound the errors with\n  shiftlab bound --source "
        f"{folder / SOURCE} --target {folder / TARGETS} --each_environment --run runs/bound"
    )
    return 0


def read_network(path: str, dataset: str, input_shape: tuple[int, ...], classes: int) -> Network:
    """Read a network that `shiftlab train` kept.

    Args:
        path: of the checkpoint.
        dataset: beginning of the identity of the dataset that it must have been trained on.
        input_shape: of one example.
        classes: number of them.

    Raises:
        InputError: naming the file and the mend, for another file, or a network trained on other data.
    """
    import torch

    from lightning_modules.networks import build_network
    from lightning_modules.state_dicts import find_state_dict, load_tensors, load_weights

    if not Path(path).is_file():
        raise InputError(f"model: {path}: no such file; give RUN/models/TRIAL.ckpt of shiftlab train")
    loaded = load_tensors(Path(path).read_bytes(), path)
    about = loaded.get("shiftlab") if isinstance(loaded, dict) else None
    if not isinstance(about, dict) or "hyperparameters" not in about:
        raise InputError(f"model: {path} was not written by shiftlab train; give RUN/models/TRIAL.ckpt")
    if not str(about["dataset"]).startswith(dataset):
        raise InputError(
            f"model: {path} was trained on {about['dataset']}, not on {dataset.rstrip(',')}); give --seed or another model"
        )
    name = json.loads(about["hyperparameters"])["network"]
    network = build_network(name, input_shape, classes, torch.Generator())
    load_weights(network, find_state_dict(loaded, path), path)
    return network.eval()


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return command(Shifts, run, argv, prog="shiftlab shifts", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
