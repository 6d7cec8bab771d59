"""`shiftlab tune`: an Optuna study of a method's hyperparameters, its trials on the cluster."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.errors import InputError
from jobs.command import command
from jobs.launch import Execution, launch

EXAMPLES = """
shiftlab tune --method IRM --dataset ColoredMNIST --objective validation --trials 200 --steps 300 --run runs/irm
shiftlab tune --method VREx --dataset ColoredMNIST --held_out -90% --seeds 3 --pruner wilcoxon --trials 50 --run runs/vrex
shiftlab tune --method ERM --dataset RotatedMNIST --space '{lr: {low: 1.0e-4, high: 1.0e-2, log: true}, batch_size: 64}' --sampler gp --run runs/erm
shiftlab tune --method CORAL --dataset RotatedMNIST --objective validation worst --sampler nsga-ii --run runs/front   # a Pareto front
shiftlab tune --method nets:Small --dataset nets:Data --objective val_loss:min --run runs/small                       # your own Lightning module
shiftlab tune --config tune.yaml --storage postgresql://user@host/studies --run s3://bucket/irm --address auto        # on a running cluster
"""


@dataclass
class Tune(Execution):
    """Search for a method's best hyperparameters: an Optuna study whose trials keep the cluster's workers busy.

    The study goes on where it stopped when the same command runs again, with more --trials as well. The best
    configuration is written to RUN/best.yaml, for `shiftlab train --config`.

    Args:
        method: name of a method (`shiftlab methods`), or module:Class, a method or LightningModule of your own.
        dataset: as for `shiftlab sweep`; for a LightningModule also module:Class of a LightningDataModule, or null if
            it brings its own loaders.
        run: where results go: a directory, s3://... or gs://...
        objective: one or more: validation (mean accuracy on the training environments' out splits), worst (their
            worst), validation-loss, oracle (the held-out environment itself), seconds; of a LightningModule what it
            logs, e.g. val_loss:min.
        trials: suggestions to finish, those of earlier launches included.
        held_out: environments kept out of training, as for sweep; every setting is a study of its own, so that no
            choice has seen what it is tested on. null holds out the last environment, none trains on all.
        seeds: replicates of every suggestion, averaged; they run one after the other, with pruning between them.
        seed: first of these seeds, and of the sampler.
        steps: parameter updates a replicate.
        checkpoint_every: steps between evaluations; null takes DomainBed's for the dataset.
        hyperparameters: values fixed in all trials, by name.
        space: ranges by name over those that the method declares: {low, high, log, step}, {choices: [...]}, a plain
            value to fix it, {..., when: {other: value}} for one that matters under a condition; or a YAML file.
        sampler: tpe, gp, cma-es, nsga-ii, nsga-iii, qmc, random, grid or brute-force.
        sampler_args: arguments of Optuna's sampler, by name.
        pruner: median, percentile, successive-halving, hyperband, wilcoxon, threshold, patient or none; null takes
            median for one objective.
        pruner_args: arguments of Optuna's pruner, by name; a step is a parameter update, replicates count on.
        pruning: async trains on while a decision is on its way; wait waits for it at every evaluation.
        terminator: end early when the study has converged, by stagnation, emmr or regret; null never does.
        terminator_args: arguments of Optuna's evaluator, and "error", the gain that is no longer worth it.
        enqueue: known-good points to try first, each a mapping of some hyperparameters.
        defaults: try the method's default hyperparameters first.
        study: name of the study; null makes one of method, dataset and what is held out.
        storage: URL of a database (postgresql://...), or path of a journal file; null takes a journal in the run.
        image_size: side in pixels to which images of a folder are resized.
        pack: suggestions of equal shape that train at once in one worker; null chooses, 1 trains each alone.
    """

    method: str
    dataset: str | None
    run: str
    objective: list[str] = field(default_factory=lambda: ["validation"])
    trials: int = 100
    held_out: list[str] | None = None
    seeds: int = 1
    seed: int = 0
    steps: int = 1000
    checkpoint_every: int | None = None
    hyperparameters: dict[str, int | float | str | bool] = field(default_factory=dict)
    space: dict[str, Any] | str = field(default_factory=dict)
    sampler: str = "tpe"
    sampler_args: dict[str, Any] = field(default_factory=dict)
    pruner: str | None = None
    pruner_args: dict[str, Any] = field(default_factory=dict)
    pruning: Literal["async", "wait"] = "async"
    terminator: str | None = None
    terminator_args: dict[str, Any] = field(default_factory=dict)
    enqueue: list[dict[str, Any]] = field(default_factory=list)
    defaults: bool = True
    study: str | None = None
    storage: str | None = None
    image_size: int = 64
    pack: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"trials": 1, "seeds": 1, "seed": 0, "steps": 1, "image_size": 1}
        self.require(least, above_zero=("checkpoint_every", "pack"))
        if len(self.enqueue) + self.defaults > self.trials:
            raise InputError(
                f"enqueue: {len(self.enqueue)} points do not fit into {self.trials} trials; give more trials"
            )


def run(options: Tune) -> int:
    """Run the studies; 0 if every suggestion asked for has ended and some are complete, 130 or 143 if stopped."""
    from jobs.tuner import Tuner
    from tuning.study import quiet_optuna

    tuner = Tuner(options)
    with quiet_optuna():
        return launch("shiftlab tune", options, options.run, tuner.prepare, tuner.summarise)


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return command(Tune, run, argv, prog="shiftlab tune", examples=EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())
