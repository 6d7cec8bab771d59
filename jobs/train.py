"""`shiftlab train`: one training run, measured on every environment, with its weights kept."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.errors import InputError
from jobs.command import command
from jobs.launch import Execution, Work, launch

if TYPE_CHECKING:
    from cluster.trial import Trial

EXAMPLES = """
shiftlab train --method IRM --dataset ColoredMNIST --held_out -90% --steps 300 --run runs/irm
shiftlab train --config runs/tuned/best.yaml                     # what `shiftlab tune` found
shiftlab train --config runs/tuned/best.yaml --seed 1 --run runs/again
shiftlab train --method nets:Small --dataset nets:Data --hyperparameters '{width: 64}' --run runs/small   # your own Lightning module
"""


@dataclass
class Train(Execution):
    """Train a method once, measure it on every environment, and keep its weights in RUN/models.

    The same command again does nothing: what is stored is not trained again.

    Args:
        method: name of a method (`shiftlab methods`), or module:Class, a method or LightningModule of your own.
        dataset: as for `shiftlab sweep`; for a LightningModule also module:Class of a LightningDataModule, or null if
            it brings its own loaders.
        run: where results go: a directory, s3://... or gs://...
        held_out: environments kept out of training, together; null holds out the last one, none or an empty list
            trains on all.
        hyperparameters: by name; those not given have their defaults.
        seed: of the splits, the weights and the batches.
        steps: parameter updates.
        checkpoint_every: steps between evaluations; null takes DomainBed's for the dataset.
        image_size: side in pixels to which images of a folder are resized.
    """

    method: str
    dataset: str | None
    run: str
    held_out: list[str] | None = None
    hyperparameters: dict[str, int | float | str | bool] = field(default_factory=dict)
    seed: int = 0
    steps: int = 1000
    checkpoint_every: int | None = None
    image_size: int = 64
    workers: int | None = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require({"seed": 0, "steps": 1, "image_size": 1}, above_zero=("checkpoint_every",))


def run(options: Train) -> int:
    """Train; 0 if the trial is completed, 1 if it failed, 130 or 143 if it was stopped."""
    found: list[Trial] = []
    return launch(
        "shiftlab train", options, options.run, lambda: _prepare(options, found), lambda _: _show(options, found[0])
    )


def _prepare(options: Train, found: list[Trial]) -> Work:
    from jobs.subjects import find_subject

    subject = find_subject(options.method, options.dataset, options.image_size, models=options.run)
    words = options.held_out
    settings = subject.settings(words if words is None else [",".join(words)] if words else ["none"])
    if len(settings) > 1:
        raise InputError(f"held_out: {words} are {len(settings)} settings, and one model is trained; name one setting")
    subject.check(options.hyperparameters, len(subject.environments) - len(settings[0]))
    every = min(options.checkpoint_every or subject.checkpoint_every, options.steps)
    budget = {"steps": options.steps, "checkpoint_every": every}
    found.append(subject.trial(options.hyperparameters, settings[0], options.seed, budget))
    return Work(1, lambda: lambda: iter(found), subject.setup, subject.shared)


def _show(options: Train, trial: Trial) -> None:
    """Print the last evaluation, and where the weights are."""
    from rich.console import Console
    from rich.table import Table

    from cluster.storage import Location
    from cluster.store import Run
    from jobs.training import model_path

    metrics = Run(options.run).read("metrics").to_pylist()
    rows = [row for row in metrics if row["trial_id"] == trial.trial_id]
    last = max(row["step"] for row in rows)
    table = Table(title=f"{trial.method} after {last} steps", title_justify="left")
    names = sorted({(row["metric"], row["split"]) for row in rows}, key=lambda pair: (pair[0], pair[1] != "in"))
    table.add_column("environment")
    for metric, split in names:
        table.add_column(f"{metric} ({split})", justify="right")
    for environment in dict.fromkeys(row["environment"] for row in rows):
        values = {
            (r["metric"], r["split"]): r["value"] for r in rows if r["environment"] == environment and r["step"] == last
        }
        held = ", held out" if environment in trial.held_out else ""
        table.add_row(f"{environment}{held}", *(f"{values[n]:.4f}" if n in values else "" for n in names))
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
    if Location.resolve(options.run).exists("models", f"{trial.trial_id}.ckpt"):
        print(f"weights: {model_path(options.run, trial.trial_id)}")


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return command(Train, run, argv, prog="shiftlab train", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
